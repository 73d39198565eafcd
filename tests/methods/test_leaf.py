"""LEAF against reference values and by hand, and the texts that it reads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ironclip.data.contract import Sample
from ironclip.errors import ConfigError, DataError, RegistryError
from ironclip.methods.base import METHODS, Batch, Pass, TextView, Views
from ironclip.randomness import SampleRandom
from ironclip.training.recipe import check_recipe
from oracles.texts import levenshtein
from reference_values import TOLERANCES, needs_reference_values, reference_inputs, reference_value

QUICK = {"name": "leaf", "candidates": 8, "constraint": "leaf"}


def views_of(adv, target):
    batch = Batch([str(row) for row in range(len(adv))], torch.zeros(len(adv), 3, 8, 8))
    passes = {Pass.STUDENT_TEXT_ADV: TextView(adv), Pass.TEACHER_TEXT: TextView(target)}
    return Views("leaf", batch, passes, torch.tensor(100.0))


def attacked(one, batch=None):
    """Run the training attack on texts once, outside a step."""
    batch = batch or one.batch
    objective = one.trainer.method.adversaries(batch, one.model, one.trainer.teacher)["text"].objective
    attack = one.trainer.recipe.build_text_attack()
    return objective, batch.texts, attack.perturb(objective, batch.texts, SampleRandom(0, batch.keys, "train|0"))


@needs_reference_values
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_loss_equals_the_reference(dtype, tolerance):
    inputs = reference_inputs("leaf", dtype)
    terms = METHODS.create("leaf").loss(views_of(inputs["adv"], inputs["teacher_clean"]))
    assert set(terms) == {"embedding"}
    assert terms["embedding"].item() == pytest.approx(reference_value("leaf")[0], rel=tolerance)


def test_the_normalised_form_compares_unit_rows():
    random = torch.Generator().manual_seed(0)
    adv, target = torch.randn(2, 4, 6, generator=random, dtype=torch.float64)
    method = METHODS.create("leaf", {"normalise": True})
    loss = method.loss(views_of(adv, target))["embedding"].item()
    assert loss == pytest.approx((2 - 2 * F.cosine_similarity(adv, target, dim=-1)).mean().item(), rel=1e-12)
    assert method.loss(views_of(3 * adv, target))["embedding"].item() == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("normalise", [False, True])
def test_is_zero_at_the_teacher_without_an_edit(normalise, bench):
    one = bench("leaf", options={"normalise": normalise}, text_attack=QUICK | {"edits": 0}, count=4)
    assert one.step()["loss"] == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("normalise", [False, True])
def test_loss_of_a_step_is_the_distance_that_the_attack_reached(normalise, bench):
    one = bench("leaf", options={"normalise": normalise}, text_attack=QUICK, count=4, shift=0.02)
    objective, texts, found = attacked(one)
    with torch.no_grad():
        before, after = objective.evaluate(texts).value, objective.evaluate(found).value
    assert (after >= before).all()
    assert (after > before).any()
    assert one.step()["loss"] == pytest.approx(after.mean().item(), rel=1e-5)


def test_texts_are_captions_where_there_are_any(bench):
    one = bench("leaf", text_attack=QUICK, labelled=False, count=3)
    captions = [("a cat on a mat", "never read"), ("the old house",), ("two red apples",)]
    one.samples = [
        Sample(sample.key, sample.pixels, None, texts) for sample, texts in zip(one.samples, captions, strict=True)
    ]
    _, texts, found = attacked(one)
    assert list(texts) == ["a cat on a mat", "the old house", "two red apples"]
    assert all(levenshtein(*pair) <= 1 for pair in zip(texts, found, strict=True))
    assert set(one.step()) == {"lr", "loss", "embedding", "gradient_norm"}


def test_without_captions_they_are_the_prompts_of_the_classes(bench):
    one = bench("leaf", text_attack=QUICK, count=3, classes=2)
    assert list(one.batch.texts) == [f"a photo of a thing {label}." for label in one.batch.labels.tolist()]


def test_without_either_it_says_so(bench):
    with pytest.raises(DataError, match='method "leaf" reads texts, but the data have none'):
        bench("leaf", text_attack=QUICK, labelled=False).step()


def test_no_image_is_looked_at(bench, monkeypatch):
    one = bench("leaf", text_attack=QUICK, count=3)
    monkeypatch.setattr(type(one.model), "embed_image", lambda *_: pytest.fail("LEAF looked at an image"))
    one.step()


def test_draws_of_an_epoch_belong_to_seed_and_key(bench, monkeypatch):
    """The same sample among others, in another order, gets the same edit; another epoch gives another."""
    attack = QUICK | {"constraint": "none"}
    one, other = (
        bench("leaf", text_attack=attack, count=6, shift=0.02),
        bench("leaf", text_attack=attack, count=6, shift=0.02),
    )
    _, _, found = attacked(one)
    batch = other.trainer._batch([other.samples[row] for row in (4, 1)])
    assert attacked(other, batch)[2] == [found[4], found[1]]
    seen = []
    own = type(one.trainer.recipe.build_text_attack()).perturb
    monkeypatch.setattr(
        type(one.trainer.recipe.build_text_attack()), "perturb", lambda *args: seen.append(own(*args)) or seen[-1]
    )
    for epoch in (0, 0, 1):
        bench("leaf", text_attack=attack, count=6, shift=0.02).trainer.step(one.samples, epoch)
    assert seen[0] == seen[1] == found
    assert seen[2] != found


def test_charmer_can_train_too(bench):
    one = bench("leaf", text_attack={"name": "charmer", "places": 2, "edits": 2}, count=2, shift=0.02)
    _, texts, found = attacked(one)
    assert all(levenshtein(*pair) <= 2 for pair in zip(texts, found, strict=True))
    assert one.step()["loss"] > 0


# The recipe


def recipe(method, **more):
    return check_recipe(
        {
            "method": {"name": method},
            "model": "local-dir:unused",
            "data": {"train": "wds:unused"},
            "optimisation": {"lr": 0.1, "steps": 1},
            **more,
        }
    )


def test_the_methods_own_text_attack_is_in_the_record():
    resolved = recipe("leaf").resolved()
    assert resolved["text_attack"] == {"name": "leaf", "edits": 1, "candidates": 50, "constraint": "leaf"}
    same = recipe("leaf", text_attack={"name": "leaf", "candidates": 50, "constraint": "leaf"})
    assert same.resolved() == resolved
    assert recipe("leaf", text_attack={"name": "leaf"}).resolved() != resolved


def test_recipes_without_texts_are_recorded_as_before():
    assert "text_attack" not in recipe("tecoa").resolved()


def test_a_text_attack_for_a_method_without_texts_is_refused():
    with pytest.raises(ConfigError, match='text_attack: method "tecoa" attacks no texts'):
        recipe("tecoa", text_attack={"name": "leaf"})


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"name": "leef"}, r'unknown attack "leef"\. Did you mean "leaf"'),
        ({"name": "pgd"}, 'unknown attack "pgd"'),
        ({"name": "leaf", "edit": 1}, r'text_attack: unknown key "edit"\. Did you mean "edits"'),
        ({}, 'text_attack: the key "name" is missing'),
    ],
)
def test_a_text_attack_that_is_none_is_refused(section, words):
    with pytest.raises((ConfigError, RegistryError), match=words):
        recipe("leaf", text_attack=section)
