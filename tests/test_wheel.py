"""What an installation holds besides code: recipes, suites, templates, the bundled model."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DATA = {".yaml", ".j2", ".css", ".json", ".safetensors", ".md"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this clone, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_data_files_are_installed(installed: Path) -> None:
    source = ROOT / "src" / "ironclip"
    wanted = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.suffix in DATA}
    found = {path.relative_to(installed / "ironclip").as_posix() for path in (installed / "ironclip").rglob("*")}
    assert {"recipes/quickstart/tecoa.yaml", "suites/bundled.yaml", "suites/classes/digits.yaml"} <= wanted <= found
    assert "py.typed" in found


def test_an_installation_finds_its_recipes(installed: Path, tmp_path: Path) -> None:
    code = (
        "from ironclip.training.bundled_recipes import bundled_recipes, recipe_path\n"
        "print(*bundled_recipes())\n"
        "print(recipe_path('quickstart/tecoa'))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    names, path = done.stdout.splitlines()
    assert "quickstart/fare" in names.split()
    assert Path(path).is_relative_to(installed)
    assert Path(path).is_file()
