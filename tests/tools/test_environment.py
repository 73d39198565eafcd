"""The environment of `make`: found again, made anew when a pin changes, never taken for whole when it is not."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "environment.py"


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """The script over a copy of the files that it reads, in an empty home, with an installer that only notes calls."""
    spec = importlib.util.spec_from_file_location("environment", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    root = tmp_path / "clone"
    root.mkdir()
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(SCRIPT.parents[1] / name, root / name)
    monkeypatch.setattr(module, "ROOT", root)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("IRONCLIP_VENV", raising=False)

    def create(_builder, place):
        place.mkdir(parents=True)
        (place / "pyvenv.cfg").write_text("home = /usr/bin\n")

    def pip(place, *arguments):
        module.calls.append(arguments)
        if module.interrupted:
            raise KeyboardInterrupt
        note = place / "lib" / "python3" / "site-packages" / "ironclip-0.1.0.dist-info" / "direct_url.json"
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps({"dir_info": {"editable": True}, "url": module.ROOT.as_uri()}))

    module.calls, module.interrupted = [], False
    monkeypatch.setattr(module.venv.EnvBuilder, "create", create)
    monkeypatch.setattr(module, "pip", pip)
    return module


def test_it_is_made_once(environment, capsys):
    environment.main()
    place = Path(capsys.readouterr().out.strip())
    assert place == environment.folder()
    assert any(".[dev]" in call for call in environment.calls)
    environment.calls.clear()
    environment.main()
    assert environment.calls == []


def test_a_changed_pin_is_another_environment(environment):
    before = environment.folder()
    pins = environment.ROOT / "constraints.txt"
    pins.write_text(pins.read_text().replace("numpy==", "numpy==9"))
    assert environment.folder() != before


def test_an_interrupted_installation_starts_afresh(environment):
    environment.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        environment.main()
    (environment.folder() / "half").write_text("left behind")
    environment.interrupted = False
    environment.main()
    assert not (environment.folder() / "half").exists()
    assert (environment.folder() / environment.STAMP).is_file()


def test_another_clone_is_linked_again(environment, tmp_path, monkeypatch):
    environment.main()
    environment.calls.clear()
    monkeypatch.setattr(environment, "ROOT", shutil.copytree(environment.ROOT, tmp_path / "other"))
    environment.main()
    (call,) = environment.calls
    assert "--no-deps" in call
    assert call[-2:] == ("-e", ".")


def test_a_folder_of_another_use_is_left_alone(environment, tmp_path, monkeypatch):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years")
    monkeypatch.setenv("IRONCLIP_VENV", str(tmp_path / "thesis"))
    with pytest.raises(SystemExit, match="is no Python environment"):
        environment.main()
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "years"
