"""The tutorials run as they stand, and what they say comes true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"


def run(name: str) -> dict[str, Any]:
    """Run the Python blocks of a tutorial, one after the other, and return the names that they defined."""
    path = TUTORIALS / f"{name}.md"
    names: dict[str, Any] = {}
    text = path.read_text(encoding="utf-8")
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        first = text[: block.start(1)].count("\n")
        # Empty lines before it, so that an error names the line of the page.
        exec(compile("\n" * first + block[1], str(path), "exec"), names)
    return names


@pytest.mark.slow
def test_make_a_clip_robust(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run("make_a_clip_robust")
    assert capsys.readouterr().out.count("under attack") == 2
    assert names["page"].is_file()
    (table,) = names["results"].datasets
    assert [cell.n for cell in table.clean] == [64, 64]


@pytest.mark.slow
def test_audit_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run("audit_a_model")
    assert names["by_gradient"]["masked"] > names["by_gradient"]["honest"] + 0.2
    assert names["without"] < names["by_gradient"]["masked"] - 0.2


def test_every_tutorial_has_a_test():
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in TUTORIALS.glob("*.md")} <= tests
