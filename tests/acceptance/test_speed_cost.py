"""The predicted cost can be wrong, and is measured on runs that are what they say."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from acceptance.claims import CannotRunError, Context

from acceptance import speed_cost
from ironclip.models.tuning import Tunable


@pytest.mark.parametrize("name", speed_cost.SETTINGS)
def test_a_setting_is_its_recipe_made_short(name):
    setting = speed_cost.SETTINGS[name]
    recipe = setting.load()
    assert recipe.method["name"] == name
    assert recipe.optimisation.steps == setting.steps
    assert recipe.sweep is None
    assert recipe.data.hold_out == 0
    assert recipe.optimisation.precision == "bf16"
    assert recipe.build_method().trains is Tunable.VISION
    assert replace(setting, steps=2).load().optimisation.steps == 2


def test_the_settings_are_those_of_the_plan():
    tecoa, fare, agft = (speed_cost.SETTINGS[name].load() for name in ("tecoa", "fare", "agft"))
    assert tecoa.model == "tiny"
    assert fare.model == agft.model == speed_cost.VIT
    assert fare.optimisation.batch_size == agft.optimisation.batch_size == 32
    assert fare.build_attack().steps == 10


@pytest.mark.parametrize(("seconds", "off"), [(100.0, 0.0), (80.0, 25.0), (200.0, 50.0)])
def test_a_wrong_prediction_is_seen(seconds, off, monkeypatch, tmp_path):
    cost = SimpleNamespace(seconds=100.0, peak_memory=2e9)
    monkeypatch.setattr(speed_cost, "cost_of", lambda recipe: cost)
    monkeypatch.setattr(speed_cost, "run_alone", lambda recipe: speed_cost.Run(seconds, 4_000_000_000))
    figures = {figure.claim: figure for figure in speed_cost.predicted_cost.measure(Context(tmp_path))}
    assert figures.keys() == {claim.name for claim in speed_cost.predicted_cost.claims}
    assert figures["fare"].value == pytest.approx(off)
    assert f"100.0 s predicted, {seconds:.1f} s measured; 2.00 GB against 4.00 GB" in figures["fare"].shown
    assert figures["fare_memory"].value == pytest.approx(50)
    bound = {claim.name: claim.bound for claim in speed_cost.predicted_cost.claims}["fare"]
    assert bound.holds(figures["fare"].value) == (off <= 25)


def test_the_short_form_times_nothing(tmp_path):
    with pytest.raises(CannotRunError, match="times nothing"):
        list(speed_cost.predicted_cost.measure(Context(tmp_path, short=True)))
