"""What every method must hold, tested on the day it is registered."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import torch
import torch.nn.functional as F

from floors import falls, floor
from ironclip.errors import ConfigError
from ironclip.methods.base import METHODS, Method, Pass, Views
from ironclip.models._weights import tensors_sha256
from ironclip.models.sources import load_model, save_model
from ironclip.models.tuning import Tunable, tuned_parameters
from ironclip.models.zero_shot import ZeroShotClassifier
from ironclip.randomness import SampleRandom
from ironclip.training.checkpoint import load_checkpoint, save_checkpoint
from ironclip.training.recipe import check_recipe

NAMES = METHODS.names()


def settings(name):
    """Give the defaults of a method, and every other choice of each setting that has a few."""
    yield {}
    defaults = METHODS.create(name)
    for key, hint in get_type_hints(METHODS.get(name)).items():
        if key not in {field.name for field in dataclasses.fields(defaults)}:
            continue
        kinds = [hint, *get_args(hint)]
        choices = [value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
        choices += [True, False] if bool in kinds else []
        yield from ({key: value} for value in choices if value != getattr(defaults, key))


CASES = [
    pytest.param(name, options, id=f"{name} {options or ''}".strip()) for name in NAMES for options in settings(name)
]


def state(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def spy_on_loss(bench, monkeypatch):
    """Collect views and terms of every call of the method's loss."""
    seen, loss = [], type(bench.trainer.method).loss

    def spied(self, views):
        terms = loss(self, views)
        seen.append((views, {title: value.detach() for title, value in terms.items()}))
        return terms

    monkeypatch.setattr(type(bench.trainer.method), "loss", spied)
    return seen


def above_floor(bench, steps, monkeypatch):
    """Take steps; return how far the first and the last loss lie above what could have been reached there."""
    with monkeypatch.context() as patch:
        seen = spy_on_loss(bench, patch)
        losses = [bench.step()["loss"] for _ in range(steps)]
    found = []
    for (views, _), loss in zip((seen[0], seen[-1]), (losses[0], losses[-1]), strict=True):
        lowest = floor(bench.trainer.method, views)
        assert lowest <= loss + 1e-5 * abs(loss), "what is called the floor is not the lowest"
        found.append(loss - lowest)
    return found


def test_there_are_methods():
    vision = {"clean", "tecoa", "fare", "pmg_aft", "agft", "ucat", "sim_clip", "tga_zsr", "comp_tga", "ft_adv"}
    assert vision <= set(NAMES)


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


@pytest.mark.parametrize(("name", "options"), CASES)
def test_loss_above_its_floor_falls_on_one_batch(name, options, bench, monkeypatch):
    # The student starts apart from the teacher, or a method that compares the two would start at its optimum.
    above = above_floor(bench(name, options=options, shift=0.02), 21, monkeypatch)
    assert above[0] > 0.01
    assert falls(above), above


@pytest.mark.parametrize("name", ["agft", "sim_clip"])
def test_a_loss_that_does_not_fall_is_noticed_whatever_its_floor(name, bench, monkeypatch):
    """Against the loss itself, a floor of 1 and a step that does nothing look like a loss that has converged."""
    assert not falls(above_floor(bench(name, shift=0.02, lr=1e-12), 21, monkeypatch))


def test_floors_are_what_they_are_in_closed_form(bench, monkeypatch):
    """The entropy of the target, the best cosine, the distance 0, and ln 4 among four images of a class."""

    def first(name):
        one = bench(name, shift=0.02)
        seen = spy_on_loss(one, monkeypatch)
        one.step()
        return floor(one.trainer.method, seen[0][0]), seen[0][0]

    lowest, views = first("agft")
    target = torch.softmax(72 * views.teacher.clean.similarity.double(), dim=1)
    assert lowest == pytest.approx(torch.special.entr(target).sum(dim=1).mean().item(), rel=1e-4)
    assert first("sim_clip")[0] == pytest.approx(-1, abs=1e-6)
    assert first("fare")[0] == pytest.approx(0, abs=1e-6)
    assert first("ft_adv")[0] == pytest.approx(math.log(4), abs=0.01)
    lowest, views = first("tecoa")
    best = F.linear(views.student.adv.class_weights, views.student.adv.class_weights)
    assert lowest <= F.cross_entropy(100 * best, torch.arange(3)).item()


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_tunes_what_it_declares_and_nothing_else(name, precision, bench):
    one = bench(name, shift=0.02, precision=precision)
    declared = set(tuned_parameters(one.model, one.trainer.method.trains))
    model, teacher = state(one.model.clip), tensors_sha256(one.trainer.teacher.model.state_dict())
    for _ in range(2):
        one.step()
    assert changed(model, state(one.model.clip)) == declared
    assert tensors_sha256(one.trainer.teacher.model.state_dict()) == teacher


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
    threat, text_attack = trainer.recipe.build_threat(), trainer.recipe.build_text_attack()
    for kind, inner in problems.items():
        random = SampleRandom(0, batch.keys)
        if kind == "text":
            found = text_attack.perturb(inner.objective, batch.texts, random)
            assert all(map(text_attack.budget.allows, batch.texts, found))
            continue
        found = trainer.attack.perturb(inner.objective, batch.pixels, threat, random)
        assert threat.contains(found, batch.pixels).all()
        assert not found.requires_grad
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert all(parameter.grad is None for parameter in trainer.teacher.model.parameters())
    assert [parameter.requires_grad for parameter in trainer.model.parameters()] == wanted


@pytest.mark.parametrize("name", NAMES)
def test_adversary_maximises_what_the_method_minimises(name, bench, monkeypatch):
    """The attack makes the loss larger; where a loss has other terms too, their sum still does not fall."""
    stronger = {"name": "pgd_m", "steps": 5, "step_size": "2/255"}
    one = bench(name, shift=0.02, lr=1e-12, attack=stronger)
    if not one.trainer.method.adversaries(one.batch, one.model, one.trainer.teacher):
        assert not one.trainer.method.needs & {Pass.STUDENT_ADV, Pass.TEACHER_ADV, Pass.STUDENT_ADV_PATCHES}
        return
    text_attack = one.trainer.recipe.build_text_attack()
    idle = text_attack and {"name": text_attack.name, ("words" if "words" in vars(text_attack) else "edits"): 0}
    calm = bench(name, shift=0.02, lr=1e-12, eps="0", text_attack=idle)
    attacked = above_floor(one, 2, monkeypatch)[0]
    assert attacked > above_floor(calm, 2, monkeypatch)[0] * 1.01


@pytest.mark.parametrize("classes", [2, 3, 10, 200])
@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_classes(name, classes, bench):
    logged = bench(name, classes=classes, shift=0.02).step()
    assert all(math.isfinite(value) for value in logged.values())


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_batch_of_one_image(name, options, bench):
    logged = bench(name, options=options, count=1, shift=0.02).step()
    assert math.isfinite(logged["loss"])


@pytest.mark.parametrize("name", NAMES)
def test_terms_are_named_finite_scalars_whose_sum_is_the_loss(name, bench, monkeypatch):
    one = bench(name, shift=0.02)
    seen = spy_on_loss(one, monkeypatch)
    logged = one.step()
    ((_, terms),) = seen
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
def test_a_run_that_is_stopped_and_resumed_is_the_straight_one(name, bench, tmp_path):
    straight, stopped, resumed = (bench(name, shift=shift) for shift in (0.02, 0.02, 0.0))
    logs = [straight.step() for _ in range(4)]
    assert [stopped.step() for _ in range(2)] == logs[:2]
    before, after = stopped.trainer, resumed.trainer
    save_checkpoint(tmp_path, "key", before.progress, dict(before.parameters), before.optimiser, {})
    after.progress, _ = load_checkpoint(tmp_path, "key", dict(after.parameters), after.optimiser)
    assert [resumed.step() for _ in range(2)] == logs[2:]
    assert after.progress == straight.trainer.progress
    assert not changed(state(straight.model.clip), state(resumed.model.clip))


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_comes_back_with_equal_logits(name, bench, tmp_path, monkeypatch):
    one = bench(name, shift=0.02)
    one.step()
    monkeypatch.setattr("ironclip.models.sources.tokenizer_for", lambda _: one.model.tokenizer)
    save_model(one.model, tmp_path / "model")
    pixels = one.batch.pixels
    # Frozen both: torch takes another attention kernel where parameters ask for gradients.
    found, expected = (
        ZeroShotClassifier(model.requires_grad_(False), *one.trainer.prompts).logits(pixels)
        for model in (load_model(f"local-dir:{tmp_path / 'model'}"), one.model)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_settings_survive_a_round_trip_through_the_recipe(name, options):
    method = METHODS.create(name, options)
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
