"""Defects of published code that concern Sim-CLIP (methods plan 6): each check passes ours and fails a planted copy."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from ironclip.methods.base import METHODS, Batch, ImageView, Pass, Teacher, Views
from ironclip.models.sources import save_model
from ironclip.randomness import SampleRandom
from ironclip.training import setup, trainer
from ironclip.training.optimisation import learning_rate
from ironclip.training.recipe import check_recipe, load_recipe
from made_up_shards import labelled, write_shard

RECIPES = Path(__file__).parents[2] / "recipes"


def first_rate(bench):
    """Learning rate of the very first update, where 10 steps of warm-up lead to 1e-3."""
    one = bench("sim_clip", shift=0.02, lr=1e-3, schedule="cosine", warmup_steps=10)
    seen = []
    one.trainer.optimiser.register_step_pre_hook(lambda optimiser, *_: seen.append(optimiser.param_groups[0]["lr"]))
    one.step()
    return seen[0]


def test_d06_the_first_step_runs_at_its_share_of_the_warm_up(bench, monkeypatch):
    assert first_rate(bench) == pytest.approx(1e-4)

    def set_after_the_step(step, steps, settings):
        return settings.lr if step == 0 else learning_rate(step - 1, steps, settings)

    monkeypatch.setattr(trainer, "learning_rate", set_after_the_step)
    assert first_rate(bench) == 1e-3


def starts_where_the_teacher_is(run):
    pairs = zip(run.model.state_dict().items(), run.teacher.model.state_dict().values(), strict=True)
    return all(torch.equal(ours, theirs) for (_, ours), theirs in pairs)


def test_d12_the_teacher_is_the_model_that_the_run_starts_from(tiny_clip, tmp_path, monkeypatch):
    save_model(tiny_clip(seed=1), tmp_path / "model")
    write_shard(tmp_path / "toy" / "train-0000.tar", labelled(0, 8, 3, 16))
    recipe = check_recipe(
        {
            "method": {"name": "sim_clip"},
            "model": f"local-dir:{tmp_path / 'model'}",
            "data": {"train": "wds:{data}/toy?split=train", "hold_out": 0},
            "optimisation": {"lr": 0.1, "steps": 1, "batch_size": 4},
        }
    )

    def prepared():
        return setup.prepare(recipe, device="cpu", data_root=str(tmp_path), strict=True)

    assert starts_where_the_teacher_is(prepared())
    monkeypatch.setattr(setup, "Teacher", lambda _: Teacher(tiny_clip(seed=0)))  # always the same weights
    assert not starts_where_the_teacher_is(prepared())


def gradients_of_both_views(clean_is_trained):
    """Norm of the gradient of the Siamese loss by the attacked and by the clean embedding."""
    random = torch.Generator().manual_seed(0)
    adv, clean = (torch.randn(3, 5, generator=random, requires_grad=True) for _ in range(2))
    seen = clean if clean_is_trained else clean.detach()
    passes = {Pass.STUDENT_ADV: ImageView(adv, None), Pass.STUDENT_CLEAN: ImageView(seen, None)}
    views = Views("sim_clip", Batch(list("abc"), torch.zeros(3, 3, 8, 8)), passes, torch.tensor(100.0))
    sum(METHODS.create("sim_clip", {"target": "self"}).loss(views).values()).backward()
    return [0.0 if leaf.grad is None else leaf.grad.norm().item() for leaf in (adv, clean)]


def test_d14_both_halves_of_the_siamese_loss_have_a_gradient():
    assert all(norm > 0.01 for norm in gradients_of_both_views(clean_is_trained=True))
    assert gradients_of_both_views(clean_is_trained=False)[1] == 0


def named_for_its_method(path):
    """A recipe lies in the folder of its method, and has it in its name."""
    method = load_recipe(path).method["name"]
    return path.parent.name == method and path.stem.startswith(method)


@pytest.mark.parametrize("method", ["sim_clip", "tga_zsr", "comp_tga", "ft_adv", "clean"])
def test_d15_recipes_run_the_method_that_they_are_named_for(method, tmp_path):
    recipes = sorted((RECIPES / method).glob("*.yaml"))
    assert recipes
    assert all(named_for_its_method(path) for path in recipes)
    planted = tmp_path / method / recipes[0].name
    planted.parent.mkdir()
    planted.write_text(recipes[0].read_text().replace(f"name: {method}", "name: fare").replace(", target: frozen", ""))
    planted.write_text(planted.read_text().replace(", variant: code", "").replace(", contrastive: true", ""))
    assert not named_for_its_method(planted)


def moved(one):
    batch = one.batch
    objective = one.trainer.method.adversaries(batch, one.model, one.trainer.teacher)["image"].objective
    threat = one.trainer.recipe.build_threat()
    found = one.trainer.attack.perturb(objective, batch.pixels, threat, SampleRandom(0, batch.keys))
    return (found - batch.pixels).abs().amax(dim=(1, 2, 3))


@pytest.mark.parametrize("name", ["pgd_m", "pgd_v"])
def test_d19_the_attack_leaves_the_point_where_student_and_teacher_agree(name, bench):
    attack = {"name": name, "steps": 2, "step_size": "4/255"}
    assert (moved(bench("sim_clip", attack=attack)) > 4 / 255).all()
    assert (moved(bench("sim_clip", attack=attack | {"start_at": "zero"})) == 0).all()


def shown_to_the_model(bench, attack):
    """Smallest and largest pixel that the attack evaluates on images with black and white places."""
    one = bench("sim_clip", attack={"name": attack, "steps": 1, "step_size": "4/255"})
    batch = one.batch
    pixels = batch.pixels.round()
    inner = one.trainer.method.adversaries(batch, one.model, one.trainer.teacher)["image"].objective
    spy, seen = copy.copy(inner), []
    evaluate = type(inner).evaluate
    object.__setattr__(spy, "evaluate", lambda x: seen.append(x.detach()) or evaluate(inner, x))
    one.trainer.attack.perturb(spy, pixels, one.trainer.recipe.build_threat(), SampleRandom(0, batch.keys))
    return min(x.min().item() for x in seen), max(x.max().item() for x in seen)


def test_d30_an_attack_begins_within_the_box_unless_it_is_the_published_one(bench):
    low, high = shown_to_the_model(bench, "pgd_m")
    assert low >= 0
    assert high <= 1
    low, high = shown_to_the_model(bench, "pgd_v")
    assert low < 0
    assert high > 1
