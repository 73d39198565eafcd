"""The figures of README and docs are those of the stored results."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "tools" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("table", ["natural", "speed"])
def test_a_page_holds_what_is_stored(tool: ModuleType, table: str) -> None:
    page = tool.TABLES[table][0].read_text()
    assert page == tool.fill(page, table, tool.text(table)), "run: python tools/tables.py"


def test_a_typed_figure_is_noticed(tool: ModuleType) -> None:
    interval = {"estimate": 0.5, "low": 0.4, "high": 0.6}
    entry = {
        "model": "original", "dataset": "a", "title": "A", "classes": 4, "eps": "2/255", "attack": "PGD-20",
        "threat": "Linf 2/255, native 32x32, white-box", "n": 100, "n_total": 1000, "suite": "natural v1",
        "clean": interval, "robust": interval,
    }  # fmt: skip
    table = tool.natural([entry])
    assert "| original | 50.0 [40.0, 60.0] | 50.0 [40.0, 60.0] |" in table
    assert "guessing gives 25.0 %" in table
    page = "x<!-- table:natural -->old<!-- /table -->y"
    filled = tool.fill(page, "natural", table)
    assert filled == f"x<!-- table:natural -->\n{table}\n<!-- /table -->y"
    assert tool.fill(filled.replace("50.0", "60.0"), "natural", table) == filled


def test_the_table_of_speed(tool: ModuleType) -> None:
    line = {
        "model": "ViT-B-32", "batch": 32, "threads": 2, "processor": "P", "torch": "2", "rounds": 5, "fast": 0.5,
        "stock_float32": 2.0, "stock_autocast": 1.5, "over_float32": 4.0, "over_autocast": 3.0, "operations": 100e9,
        "peak": 400e9, "peak_shape": [1, 2, 3], "share": 0.5,
    }  # fmt: skip
    table = tool.speed(line)
    assert "| stock open_clip, float32 | 2.00 | 4.00 |" in table
    assert "200 GFLOP/s" in table
    assert "share 50 %" in table
