from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pytest

from ironclip.evaluation.calibration import Bins
from ironclip.evaluation.intervals import wilson
from ironclip.evaluation.records import AttackInfo
from ironclip.evaluation.store import RunStore
from ironclip.report import calibration
from ironclip.report.calibration import confidence_lines, hardest
from ironclip.report.figures import reliability_diagram
from ironclip.report.page import build_report
from ironclip.report.tables import load_results
from ironclip.report.wording import percent

ORIGINAL = {"0": 0.7, "1/255": 0.4, "2/255": 0.2}


def test_lines_are_the_figures_of_the_units(make_run):
    runs = [make_run("original", ORIGINAL), make_run("tecoa", {"0": 0.6, "2/255": 0.4})]
    table = load_results(runs).datasets[0]
    store = RunStore.open(runs[0])
    units = [store.aggregate(unit).calibration for unit in store.units()]
    assert [row[0] for row in table.calibration] == units
    assert table.calibration[0][1] is None  # not run
    assert calibration.reference(table, 0) == units[1]
    lines = confidence_lines(table)
    labels = [(line.model, line.label) for line in lines]
    assert labels == [(0, "clean"), (0, "ε = 1/255"), (0, "ε = 2/255"), (1, "clean"), (1, "ε = 2/255")]
    for line in lines:
        assert len(line.cells) == len(calibration.HEAD) - 1
    clean, attacked = lines[0].cells, lines[2].cells
    assert clean[0] == percent(table.clean[0].share.estimate)
    assert attacked[0] == percent(table.robust[1][0].share.estimate)
    assert clean[2].startswith(f"{percent(units[0].clean.ece.estimate)} [")
    assert attacked[-1].startswith(f"{percent(units[1].attacked_auroc['doubt'].estimate)} [")
    assert clean[-1] == ""
    assert any("concentrations by exp" in meaning for _, meaning in calibration.reading([table]))


def test_several_attacks_leave_each_image_as_the_worst_one_did(make_run):
    run = make_run("original", {"0": 0.7, "2/255": 0.4})
    make_run("original", {"0": 0.7, "2/255": 0.25}, attack=AttackInfo(name="fgsm"), n_done=30)
    store = RunStore.open(run)
    tables = [store.read_unit(unit) for unit in store.units()]
    found = hardest(tables).to_pylist()
    by_attack = [{row["sample_id"]: row for row in table.to_pylist()} for table in tables]
    assert [row["sample_id"] for row in found] == sorted(set(by_attack[0]) & set(by_attack[1]))
    assert len(found) == 30
    for row in found:
        tried = [rows[row["sample_id"]] for rows in by_attack]
        assert row in tried
        assert row["broken"] == any(one["broken"] for one in tried)
        if len({one["broken"] for one in tried}) == 1:
            assert row["margin_adv"] == min(one["margin_adv"] for one in tried)
    table = load_results([run]).datasets[0]
    assert table.calibration[0][0].adv.accuracy == table.robust[0][0].share.estimate
    assert hardest(tables[:1]) is tables[0]


def test_a_unit_is_read_by_the_name_under_which_it_is_stored(make_run, tmp_path):
    run = make_run("original", {"0": 0.7, "2/255": 0.4})
    (unit,) = RunStore.open(run).units()
    older = unit.replace("--pgd--", "--pgd-of-an-older-version--")
    (run / "run.json").write_text((run / "run.json").read_text().replace(unit, older))
    (run / "samples" / unit).rename(run / "samples" / older)
    assert load_results([run]).datasets[0].calibration[0][0] is not None


def test_a_model_without_logits_is_named(make_run, monkeypatch):
    run = make_run("original", ORIGINAL)
    store = RunStore.open(run)
    empty = {unit: store.read_unit(unit) for unit in store.units()}
    monkeypatch.setattr(RunStore, "read_unit", lambda self, unit: _without_logits(empty[unit]))
    table = load_results([run]).datasets[0]
    assert confidence_lines(table) == []
    assert calibration.missing(table, ["original"]) == ["original: logits_clean has 0 entries a sample."]
    assert calibration.reference(table, 0) is None
    assert calibration.reading([table]) == []


def _without_logits(rows):
    index = rows.schema.get_field_index("logits_clean")
    field = rows.schema.field(index)
    return rows.set_column(index, field, pa.array([[]] * rows.num_rows, field.type))


BINS = Bins((0, 40, 0, 10), (0, 30, 0, 1), (None, 0.4, None, 0.9))
WORSE = Bins((10, 20, 10, 10), (0, 4, 4, 1), (0.1, 0.3, 0.6, 0.95))


def marks(svg: str, filled: bool) -> np.ndarray:
    inside = r"fill: var\(--model-1\)" if filled else "fill: none|fill-opacity: 0"
    found = re.findall(rf'<use href="#[^"]*" x="([\d.]+)" y="([\d.]+)" style="(?:{inside})', svg)
    return np.array(found, dtype=float)


def test_the_diagram_puts_its_points_where_the_bins_are():
    svg = str(reliability_diagram(BINS, WORSE, 1, prefix="r"))
    attacked = marks(svg, filled=True)
    assert len(attacked) == 4
    confidence = [value for value in WORSE.confidence if value is not None]
    shares = [hits / count for hits, count in zip(WORSE.hits, WORSE.counts, strict=True)]
    x, y = attacked.T
    np.testing.assert_allclose(np.diff(x) / np.diff(confidence), np.diff(x)[0] / np.diff(confidence)[0], rtol=1e-5)
    np.testing.assert_allclose(y[0] - y, (y[0] - y[1]) / (shares[1] - shares[0]) * np.array(shares), atol=1e-4)
    assert svg == str(reliability_diagram(BINS, WORSE, 1, prefix="r"))
    assert "confidence, %</text>" in svg
    assert wilson(1, 10).high > 0.1  # the interval of a bin is wider than the mark


def test_page_and_markdown_show_it(make_run, tmp_path):
    runs = [make_run("original", ORIGINAL), make_run("te<co>a", {"0": 0.6, "2/255": 0.4}, folder="b")]
    page = build_report(runs, tmp_path / "out").read_text()
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert re.findall(r"<figcaption>cifar10, (.*), clean and ε = 2/255<", page) == ["original", "te&lt;co&gt;a"]
    assert "Whether the models know how sure they can be" in page
    lines = confidence_lines(load_results(runs).datasets[0])
    for line in lines:
        for cell in line.cells:
            assert f"<td>{cell}</td>" in page
    assert f"| te\\<co\\>a, ε = 2/255 | {' | '.join(lines[-1].cells)} |" in markdown
    assert "### Confidence on cifar10" in markdown


@pytest.mark.parametrize("n", [1, 2])
def test_very_few_images_are_shown_too(make_run, tmp_path, n):
    run = make_run("original", ORIGINAL, n=n)
    assert "calibration error" in build_report([run], tmp_path / "out").read_text()
