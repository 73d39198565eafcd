"""The shape of the package: which way imports point, and what `import ironclip` offers and costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ironclip

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src")}


def test_imports_point_one_way():
    """The contracts stand in pyproject.toml; a room that they do not place is a failure too."""
    lint = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run([sys.executable, "-c", lint], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ironclip.__all__)
def test_every_public_name_resolves(name):
    assert getattr(ironclip, name) is not None
    assert name in dir(ironclip)


def test_type_checkers_see_the_names_that_python_sees():
    import ast

    tree = ast.parse(Path(ironclip.__file__).read_text())
    (typed,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = {(node.module, alias.name) for node in typed.body for alias in node.names}
    homes = {(f"ironclip.{home}", name) for home, names in ironclip._HOMES.items() for name in names}
    assert imports == homes
    assert {name for _, name in imports} | {"__version__"} == set(ironclip.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'train_model'"):
        _ = ironclip.train_model


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, ironclip; print(sorted({'torch', 'numpy', 'pydantic', 'yaml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_registries_need_no_list_of_files():
    """A new file in the folder is found: `ironclip.methods` and `ironclip.attacks` import none of their files."""
    for room in ("methods", "attacks"):
        source = (ROOT / "src" / "ironclip" / room / "__init__.py").read_text()
        assert "import" not in source.partition('"""')[2].partition('"""')[2]
