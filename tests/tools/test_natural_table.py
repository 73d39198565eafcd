"""The figures of the README are those of the stored rows."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("natural_table", ROOT / "tools" / "natural_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_holds_what_the_stored_rows_say(tool: ModuleType) -> None:
    entries = json.loads(tool.STORED.read_text()) if tool.STORED.is_file() else []
    readme = tool.README.read_text()
    assert readme == tool.fill(readme, tool.render(entries)), "run: python tools/natural_table.py"


def test_a_typed_figure_is_noticed(tool: ModuleType) -> None:
    interval = {"estimate": 0.5, "low": 0.4, "high": 0.6}
    entry = {
        "model": "original", "dataset": "a", "title": "A", "classes": 4, "eps": "2/255", "attack": "PGD-20",
        "threat": "Linf 2/255, native 32x32, white-box", "n": 100, "n_total": 1000, "suite": "natural v1",
        "clean": interval, "robust": interval,
    }  # fmt: skip
    table = tool.render([entry])
    assert "| original | 50.0 [40.0, 60.0] | 50.0 [40.0, 60.0] |" in table
    assert "guessing gives 25.0 %" in table
    filled = tool.fill(f"x{tool.BEGIN}old{tool.END}y", table)
    assert filled == f"x{tool.BEGIN}\n{table}\n{tool.END}y"
    assert tool.fill(filled.replace("50.0", "60.0"), table) == filled
