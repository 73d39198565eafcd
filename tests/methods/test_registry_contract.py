"""What every method must hold, tested on the day it is registered."""

from __future__ import annotations

import dataclasses
import json
import math
import sys

import pytest
import torch

from ironclip.errors import ConfigError
from ironclip.methods.base import METHODS, Method, Pass, Views
from ironclip.models.tuning import Tunable, tuned_parameters
from ironclip.randomness import SampleRandom
from ironclip.training.recipe import check_recipe

NAMES = METHODS.names()


def state(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def spy_on_loss(bench, monkeypatch):
    """Collect the terms of every call of the method's loss."""
    seen, loss = [], type(bench.trainer.method).loss

    def spied(self, views):
        terms = loss(self, views)
        seen.append({title: value.detach() for title, value in terms.items()})
        return terms

    monkeypatch.setattr(type(bench.trainer.method), "loss", spied)
    return seen


def test_there_are_methods():
    assert {"clean", "fare", "tecoa"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_builds_from_its_defaults_and_says_what_it_is(name):
    method = METHODS.create(name)
    assert isinstance(method, Method)
    assert method.name == name
    assert isinstance(method.trains, Tunable)
    assert method.needs
    assert method.needs <= frozenset(Pass)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.name = "other"
    assert type(method).__doc__
    assert "Source:" in sys.modules[type(method).__module__].__doc__


@pytest.mark.parametrize("name", NAMES)
def test_loss_falls_on_one_batch(name, bench):
    # The student starts apart from the teacher, or a method that compares the two would start at its optimum.
    one = bench(name, shift=0.02)
    losses = [one.step()["loss"] for _ in range(21)]
    assert losses[0] > 0.01
    assert losses[-1] < 0.9 * losses[0], losses


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_tunes_what_it_declares_and_nothing_else(name, precision, bench):
    one = bench(name, shift=0.02, precision=precision)
    declared = set(tuned_parameters(one.model, one.trainer.method.trains))
    model, teacher = state(one.model.clip), state(one.trainer.teacher.model)
    for _ in range(2):
        one.step()
    assert changed(model, state(one.model.clip)) == declared
    assert not changed(teacher, state(one.trainer.teacher.model))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_the_declared_part_only(name, bench):
    one = bench(name, shift=0.02)
    strangers = []

    def look(*_):
        inside = {id(parameter) for parameter in one.trainer.parameters.values()}
        everything = [*one.model.named_parameters(), *one.trainer.teacher.model.named_parameters()]
        strangers.extend(n for n, parameter in everything if id(parameter) not in inside and parameter.grad is not None)

    one.trainer.optimiser.register_step_pre_hook(look)
    gradients = one.gradients()
    assert strangers == []
    assert set(gradients) == set(one.trainer.parameters)
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert all(parameter.grad is None for parameter in one.model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_attack_leaves_no_gradient_in_the_model(name, bench):
    one = bench(name, shift=0.02)
    batch, trainer = one.batch, one.trainer
    problems = trainer.method.adversaries(batch, trainer.model, trainer.teacher)
    wanted = [parameter.requires_grad for parameter in trainer.model.parameters()]
    for kind, inner in problems.items():
        assert kind == "image", "a text adversary needs a text attack here"
        threat, random = trainer.recipe.build_threat(), SampleRandom(0, batch.keys)
        found = trainer.attack.perturb(inner.objective, batch.pixels, threat, random)
        assert threat.contains(found, batch.pixels).all()
        assert not found.requires_grad
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert all(parameter.grad is None for parameter in trainer.teacher.model.parameters())
    assert [parameter.requires_grad for parameter in trainer.model.parameters()] == wanted


@pytest.mark.parametrize("name", NAMES)
def test_adversary_maximises_what_the_method_minimises(name, bench):
    """The attack makes the loss larger; where a loss has other terms too, their sum still does not fall."""
    one = bench(name, shift=0.02, lr=1e-12, attack={"name": "pgd_m", "steps": 5, "step_size": "2/255"})
    if not one.trainer.method.adversaries(one.batch, one.model, one.trainer.teacher):
        assert not one.trainer.method.needs & {Pass.STUDENT_ADV, Pass.TEACHER_ADV, Pass.STUDENT_ADV_PATCHES}
        return
    calm = bench(name, shift=0.02, lr=1e-12, eps="0")
    assert one.step()["loss"] > calm.step()["loss"] * 1.01


@pytest.mark.parametrize("classes", [2, 3, 10, 200])
@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_classes(name, classes, bench):
    logged = bench(name, classes=classes, shift=0.02).step()
    assert all(math.isfinite(value) for value in logged.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_one_image(name, bench):
    logged = bench(name, count=1, shift=0.02).step()
    assert math.isfinite(logged["loss"])


@pytest.mark.parametrize("name", NAMES)
def test_terms_are_named_finite_scalars_whose_sum_is_the_loss(name, bench, monkeypatch):
    one = bench(name, shift=0.02)
    seen = spy_on_loss(one, monkeypatch)
    logged = one.step()
    (terms,) = seen
    assert terms
    for title, value in terms.items():
        assert value.shape == ()
        assert value.dtype in (torch.float32, torch.float64)
        assert torch.isfinite(value)
        assert title not in ("loss", "lr", "gradient_norm", "step", "epoch")
        assert logged[title] == pytest.approx(float(value), rel=1e-6)
    assert logged["loss"] == pytest.approx(sum(float(value) for value in terms.values()), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_same_batch_same_loss(name, bench):
    assert bench(name, shift=0.02).step() == bench(name, shift=0.02).step()


@pytest.mark.parametrize("name", NAMES)
def test_settings_survive_a_round_trip_through_the_recipe(name):
    method = METHODS.create(name)
    recipe = check_recipe(
        {
            "method": {"name": name, **dataclasses.asdict(method)},
            "model": "local-dir:unused",
            "data": {"train": "wds:unused"},
            "optimisation": {"lr": 0.1, "steps": 1},
        }
    )
    again = check_recipe(json.loads(json.dumps(recipe.model_dump(mode="json"))))
    assert again.build_method() == method
    assert again == recipe


@pytest.mark.parametrize("name", NAMES)
def test_reading_an_undeclared_pass_names_what_to_add(name, bench):
    one = bench(name)
    method = one.trainer.method
    views = Views(name, one.batch, dict.fromkeys(method.needs), one.model.logit_scale)
    for wanted in Pass:
        model, view = wanted.value.split(".")
        if wanted in method.needs:
            assert getattr(getattr(views, model), view) is None
            continue
        with pytest.raises(ConfigError, match=rf'method "{name}" reads views\.{wanted.value}') as caught:
            getattr(getattr(views, model), view)
        assert f"Add Pass.{wanted.name} to `needs`" in caught.value.remedy


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_setting_is_refused(name):
    with pytest.raises(ConfigError, match=r'unknown key "no_such_setting"'):
        METHODS.create(name, {"no_such_setting": 1})
