"""The items of the training step can fail, and keep what the tables are made from."""

from __future__ import annotations

import json

import pytest
from acceptance.claims import CannotRunError, Context
from benchmarks.published import STEPS
from benchmarks.training_step import Comparison

from acceptance import speed_training

ITEMS = (
    speed_training.training_equal,
    speed_training.training_tecoa,
    speed_training.training_pmg_aft,
    speed_training.training_fare,
    speed_training.training_agft,
    speed_training.training_tuned,
    speed_training.tower_share,
)


def comparison(**changes: object) -> Comparison:
    content = {
        "method": "tecoa", "model": "ViT-B-32", "batch": 32, "device": "cpu", "classes": 200, "baseline": "published",
        "rounds": 5, "baseline_rounds": 3, "ours": 5.0, "theirs": 100.0, "ours_memory": 3 * 10**9,
        "theirs_memory": 10**10, "ours_operations": 2 * 10**12, "theirs_operations": 10**13, "ours_peak": 8e11,
        "ours_peak_shape": (1, 2, 3), "theirs_peak": 2e11, "theirs_peak_shape": (4, 5, 6), "load": 0.1,
    }  # fmt: skip
    return Comparison(**(content | changes))


@pytest.mark.parametrize("item", ITEMS[1:], ids=lambda item: item.name)
def test_the_short_form_times_nothing(item, tmp_path):
    with pytest.raises(CannotRunError, match="times nothing"):
        next(item.measure(Context(tmp_path, short=True)))


def test_figures_carry_times_ideals_and_runs():
    found = comparison()
    shown = speed_training.ratio("ratio", found)
    assert shown.value == 20
    assert shown.shown == "20.0 x, ideal 20.0 x (5.00 s against 100.0 s; medians of 5 and 3, load 0.1)"
    assert speed_training.memory("memory", found).value == 30
    ideal = speed_training.of_ideal("ideal", found)
    assert ideal.value == 100
    assert "ours 2.00 TFLOP at 50 % of 800 GFLOP/s, published 10.00 TFLOP at 50 % of 200 GFLOP/s" in ideal.shown


def test_a_slow_step_fails_and_its_figures_are_kept(tmp_path, monkeypatch):
    def slow(method, classes, baseline="published", *, slow=None):
        return comparison(classes=classes, theirs=float(classes) / 4, baseline_rounds=slow or 5)

    monkeypatch.setattr(speed_training, "against", slow)
    context = Context(tmp_path / "work")
    figures = {figure.claim: figure for figure in speed_training.training_tecoa.measure(context)}
    bounds = {claim.name: claim.bound for claim in speed_training.training_tecoa.claims}
    assert figures.keys() == bounds.keys()
    assert figures["ratio"].value == 10
    assert not bounds["ratio"].holds(figures["ratio"].value)
    assert figures["far"].value == 50
    line = json.loads((context.work / speed_training.LINES).read_text())
    assert [step["classes"] for step in line["steps"]] == [50, 100, 200]
    assert line["extrapolated"]["classes"] == 1000


def test_the_class_count_of_pmg_aft_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(speed_training, "largest_class_count", lambda method, **sizes: 130)
    monkeypatch.setattr(speed_training, "against", lambda method, classes, apart: comparison(classes=classes))
    figures = list(speed_training.training_pmg_aft.measure(Context(tmp_path)))
    assert figures[0].shown.startswith("130 classes: 20.0 x")


@pytest.mark.slow
def test_a_published_step_that_computes_something_else_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(STEPS["agft"], "calibration", 1.0)
    figures = {figure.claim: figure for figure in speed_training.training_equal.measure(Context(tmp_path, short=True))}
    (bound,) = {claim.bound for claim in speed_training.training_equal.claims}
    assert {name for name, figure in figures.items() if not bound.holds(figure.value)} == {"agft"}
