"""The figures of README and docs are those of the stored results."""

from __future__ import annotations

import importlib.util
import json
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


@pytest.mark.parametrize("table", ["natural", "quickstart", "speed", "attack_speed", "tiny", "tiny-run"])
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


def test_the_table_of_a_quickstart(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interval = {"estimate": 0.5, "low": 0.4, "high": 0.6}

    def collect(runs: list[Path]) -> list[dict[str, object]]:
        shared = {
            "dataset": "digits", "title": "Digits", "classes": 10, "eps": "4/255", "attack": "PGD-20", "n": 300,
            "threat": "Linf 4/255, native 32x32, white-box", "n_total": 500, "suite": "bundled v1", "clean": interval,
            "robust": interval,
        }  # fmt: skip
        return [shared | {"model": run.name} for run in runs]

    monkeypatch.setattr(tool, "collect", collect)
    for name in ("tecoa", "fare"):
        run = tmp_path / "train" / name
        run.mkdir(parents=True)
        (run / "run.json").write_text('{"data": {"source": "bundled:shapes?split=train"}}')
    content = tool.collect_quickstart(tmp_path)
    assert content["tuned_on"] == ["bundled:shapes?split=train"]
    assert [entry["model"] for entry in content["entries"]] == ["original", "tecoa", "fare"]
    table = tool.quickstart(content)
    assert "**Digits** (300 of 500 test images, 10 classes, guessing gives 10.0 %)" in table
    assert table.count("50.0 [40.0, 60.0]") == 6
    assert "Tuned on `bundled:shapes?split=train`, on none of the images" in table
    assert "`docs/results/quickstart.json`" in table


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


def test_the_table_of_attacks(tool: ModuleType, tmp_path: Path) -> None:
    line = {
        "attack": "pair", "eps": "3/255", "peer": "pyautoattack", "model": "runs/here/tecoa", "images": [100] * 5,
        "threads": 2, "processor": "P", "torch": "2", "seconds": [20.0, 50.5], "ratio": 2.5, "ideal": 2.25,
        "forwards": [1000, 1100], "backwards": [900, 1000], "standing": [60, 61],
    }  # fmt: skip
    other = line | {"model": "open_clip:ViT-B-32/random?seed=0", "attack": "PGD-10", "peer": "foolbox"}
    printed = tmp_path / "lines"
    printed.write_text("\n".join(map(json.dumps, (line, other))) + "\n")
    table = tool.attack_speed(tool._json_lines(printed))
    row = "| pair, 3/255, tecoa | pyautoattack | 5 x 100 | 20.0 / 50.5 | 2.50 | 2.25 | 1,900 / 2,100 | 60 / 61 |"
    assert row in table
    assert "| PGD-10, 3/255, open_clip:ViT-B-32/random?seed=0 | foolbox |" in table


def test_the_tables_of_the_model_card(tool: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    record = {"recipe": {"seed": 3}, "data": {"toy": 1200}, "targets": {"kind": "clip"}, "versions": {}}
    language = {"steps": 22, "class_cosine": 0.9938, "word_cosine": 0.795}
    result = {
        "weights_sha256": "ab12", "steps": 900, "images_per_step": 256, "language": language, "validation": {},
    }  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "result.json").write_text(json.dumps(result))
    lines = [{"step": 1, "images_per_second": 64.0}, {"step": 1, "validation": {"toy": 0.5}}]
    (tmp_path / "images" / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    shown = tool.tiny_run(tool.collect_tiny(tmp_path))
    for word in ("`ab12`", "seed 3", "toy 1,200", "0.994 on class names, 0.80 on other words", "900 steps"):
        assert word in shown
    assert "0.2 million images, about 1.0 hours (64 images/s)" in shown
    items = [
        {"line": "digits", "figure": "97 %", "command": "python -m acceptance.run tiny --only zero_shot_bundled"},
        {"line": "other", "figure": "1 s", "command": "python -m acceptance.run tiny --only quickstart"},
    ]
    table = tool.tiny({"commit": "0123456789abcdef", "items": items})
    assert "| digits | 97 % |" in table
    assert "other" not in table
    assert "commit 0123456789ab " in table


def test_the_table_of_training_steps(tool: ModuleType) -> None:
    step = {
        "method": "tecoa", "baseline": "published", "model": "ViT-B-32", "batch": 32, "classes": 200, "rounds": 5,
        "baseline_rounds": 3, "ours": 5.0, "theirs": 100.0, "ours_images_per_second": 6.4, "ratio": 20.0, "ideal": 18.0,
        "theirs_images_per_second": 0.32, "ours_memory": 3e9, "theirs_memory": 10e9, "ours_operations": 2e12,
        "theirs_operations": 10e12, "ours_share": 0.5, "theirs_share": 0.4,
    }  # fmt: skip
    line = {"processor": "P", "threads": 2, "torch": "2", "steps": [step]}
    far = {"extrapolated": {"classes": 1000, "theirs": 500.0, "ratio": 100.0}}
    table = tool.training_speed([line | far, line | {"steps": [step | {"method": "fare", "baseline": "tuned"}]}])
    assert "| tecoa, published | 200 | 5.00 s, 6.4/s | 100.0 s, 0.32/s | 20.0 | 18.0 | 3.0 of 10.0 GB |" in table
    assert "| fare, tuned | - |" in table
    assert table.count("extrapolated, not measured") == 1
    assert "1,000 classes would take 500 s" in table
