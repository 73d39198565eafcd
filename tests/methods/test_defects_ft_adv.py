"""Defects of published code that concern FT-Adv (methods plan 6): each check passes ours and fails a planted copy."""

from __future__ import annotations

import argparse
import dataclasses
import typing

import pytest

from ironclip.errors import ConfigError
from ironclip.methods.base import METHODS
from ironclip.training.recipe import load_recipe

RECIPE = """
method: {{name: {name}}}
model: local-dir:unused
data: {{train: "wds:unused", hold_out: 0}}
optimisation: {{lr: 0.1, steps: 1}}
"""
BOOLEANS = [
    (name, setting.name)
    for name in METHODS
    for setting in dataclasses.fields(METHODS.get(name))
    if typing.get_type_hints(METHODS.get(name))[setting.name] is bool
]


def test_d22_there_are_booleans():
    assert ("clean", "contrastive") in BOOLEANS


@pytest.mark.parametrize(("name", "setting"), BOOLEANS)
def test_d22_booleans_can_be_given_on_the_command_line(name, setting, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(name=name))

    def given(text):
        return getattr(load_recipe(path, [f"method.{setting}={text}"]).build_method(), setting)

    assert [given(text) for text in ("true", "True", "false", "False")] == [True, True, False, False]
    with pytest.raises(ConfigError, match=setting):
        given("perhaps")
    planted = argparse.ArgumentParser(exit_on_error=False)
    planted.add_argument("--VPbaseline", type=int, default=True, choices=[True, False])
    with pytest.raises(argparse.ArgumentError):
        planted.parse_args(["--VPbaseline", "False"])


def attacks_of_a_step(one, monkeypatch):
    calls, perturb = [], type(one.trainer.attack).perturb
    monkeypatch.setattr(type(one.trainer.attack), "perturb", lambda *a: calls.append(1) or perturb(*a))
    one.step()
    return len(calls)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_d22_ft_adv_never_trains_on_clean_images(precision, bench, monkeypatch):
    """The default of the published switch left FT-Adv without its attack."""
    assert attacks_of_a_step(bench("ft_adv", precision=precision), monkeypatch) == 1
    one = bench("ft_adv", precision=precision)
    monkeypatch.setattr(type(one.trainer.method), "adversaries", lambda *_: {})
    with pytest.raises(ConfigError, match=r"needs Pass\.STUDENT_ADV, but declares no image adversary"):
        one.step()
