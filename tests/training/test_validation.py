"""Validation on held-out images: its figures, and the gap that gives catastrophic overfitting away."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ironclip.attacks.base import ATTACKS
from ironclip.attacks.driver import run_attack
from ironclip.attacks.objectives import EmbeddingDistance, Misclassify
from ironclip.attacks.threat_model import ThreatModel
from ironclip.models.zero_shot import FixedClasses
from ironclip.randomness import SampleRandom
from ironclip.training.validation import HeldOut, Validation, validate
from made_up_images import natural_like

THREAT = ThreatModel(eps="8/255")
PGD = ATTACKS.create("pgd", {"steps": 10})
COUNT = 40


@pytest.fixture
def scene(tiny_clip):
    """Hold out images under the labels that the model itself gives most of them: it is right on 30 of 40."""
    model = tiny_clip()
    pixels = natural_like(COUNT, 32, seed=5)
    class_weights = F.normalize(torch.randn(4, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    with torch.no_grad():
        embedding = model.embed_image(pixels)
        labels = (F.normalize(embedding, dim=-1) @ class_weights.T).argmax(dim=1)
    labels[::4] = (labels[::4] + 1) % 4
    return model, HeldOut([f"held/{row}" for row in range(COUNT)], pixels, labels, embedding), class_weights


def settings(**changes):
    chosen = {"attack": PGD, "train_attack": None, "threat": THREAT, "seed": 0, "precision": torch.float32}
    return chosen | changes


def by(attack, scene):
    """Attack held-out images as a method with TeCoA's inner problem would."""
    model, _, class_weights = scene

    def perturb(part):
        objective = Misclassify(FixedClasses(model, class_weights), part.labels)
        return attack.perturb(objective, part.pixels, THREAT, SampleRandom(0, part.keys, "validation"))

    return perturb


def weak(**changes):
    """An attack that hardly moves: what is left of an adversary that a model has learned to blind."""
    return ATTACKS.create("pgd_m", {"start_at": "zero", "step_size": 1e-6, "steps": 1} | changes)


def test_figures_are_those_of_the_attacks(scene):
    model, held_out, class_weights = scene
    found = validate(model, held_out, class_weights, **settings(train_attack=by(PGD, scene)))
    objective = Misclassify(FixedClasses(model, class_weights), held_out.labels, loss="ce")
    outcome = run_attack(PGD, objective, held_out.pixels, held_out.keys, THREAT, seed=0)
    assert found.samples == COUNT
    assert found.clean_accuracy == pytest.approx(0.75)
    assert found.robust_accuracy == pytest.approx(1 - outcome.broken.double().mean().item())
    assert found.robust_accuracy < found.clean_accuracy
    with torch.no_grad():
        cosine = F.cosine_similarity(model.embed_image(outcome.adversarial), held_out.teacher_embedding)
    assert found.embedding_cosine == pytest.approx(cosine.mean().item(), rel=1e-5)
    assert 0 < found.embedding_cosine < 1


def test_a_weak_training_attack_shows_as_a_gap(scene):
    """Catastrophic overfitting: the model withstands what it was trained with, and nothing else."""
    model, held_out, class_weights = scene
    blind = validate(model, held_out, class_weights, **settings(train_attack=by(weak(), scene)))
    assert blind.train_attack_accuracy == pytest.approx(0.75)
    assert blind.overfitting_gap == blind.train_attack_accuracy - blind.robust_accuracy
    assert blind.overfitting_gap > 0.3
    strong = ATTACKS.create("pgd_m", {"step_size": "1/255", "steps": 10})
    honest = validate(model, held_out, class_weights, **settings(train_attack=by(strong, scene)))
    assert abs(honest.overfitting_gap) < 0.1
    assert honest.robust_accuracy == blind.robust_accuracy


def test_training_attack_is_scored_on_the_point_that_it_returns(scene):
    """As training sees it: no early exit, the last iterate, a clean mistake may become right again."""
    model, held_out, class_weights = scene
    attack = ATTACKS.create("pgd_m", {"step_size": "4/255", "steps": 2, "start_at": "zero"})
    found = validate(model, held_out, class_weights, **settings(train_attack=by(attack, scene)))
    x = held_out.pixels.clone()
    for _ in range(2):
        x.requires_grad_(True)
        # float64: at a margin of 17 and more the softmax of float32 has no gradient left, which ours has.
        logits = (model.logit_scale * model.image_features(x) @ class_weights.T).double()
        gradient = torch.autograd.grad(F.cross_entropy(logits, held_out.labels, reduction="sum"), x)[0]
        x = x.detach() + 4 / 255 * gradient.sign()
        x = torch.minimum(torch.maximum(x, held_out.pixels - 8 / 255), held_out.pixels + 8 / 255).clamp(0, 1)
    with torch.no_grad():
        right = (model.image_features(x) @ class_weights.T).argmax(dim=1) == held_out.labels
    assert found.train_attack_accuracy == pytest.approx(right.double().mean().item())


def test_without_a_training_attack_there_is_no_gap(scene):
    found = validate(*scene, **settings())
    assert math.isnan(found.train_attack_accuracy)
    assert math.isnan(found.overfitting_gap)
    assert found.value == found.robust_accuracy


@pytest.mark.parametrize("lacking", ["labels", "classes"])
def test_without_labels_the_embedding_is_attacked(lacking, scene):
    model, held_out, class_weights = scene
    if lacking == "labels":
        held_out = HeldOut(held_out.keys, held_out.pixels, None, held_out.teacher_embedding)
    else:
        class_weights = None
    found = validate(model, held_out, class_weights, **settings(train_attack=by(weak(), scene)))
    assert all(
        math.isnan(value)
        for value in (found.clean_accuracy, found.robust_accuracy, found.train_attack_accuracy, found.overfitting_gap)
    )
    assert found.value == found.embedding_cosine < 0.999
    still = validate(model, held_out, class_weights, **settings(threat=ThreatModel(eps="0")))
    assert still.embedding_cosine == pytest.approx(1, abs=1e-6)


def test_robust_accuracy_does_not_rise_with_eps(scene):
    robust = [
        validate(*scene, **settings(threat=ThreatModel(eps=eps))).robust_accuracy for eps in ("0", "2/255", "8/255")
    ]
    assert robust[0] == pytest.approx(0.75)
    assert robust[0] >= robust[1] >= robust[2]
    assert robust[0] > robust[2]


def test_starts_are_the_same_at_every_validation(scene):
    one, again, other = (validate(*scene, **settings(train_attack=by(PGD, scene), seed=seed)) for seed in (3, 3, 4))
    assert one == again
    assert one.embedding_cosine != other.embedding_cosine


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_search_runs_in_the_precision_of_the_run(precision, scene, monkeypatch):
    model, passes = scene[0], []
    embed = type(model._fast).embed

    def spied(self, normalised, dtype):
        passes.append((dtype, torch.is_grad_enabled()))
        return embed(self, normalised, dtype)

    monkeypatch.setattr(type(model._fast), "embed", spied)
    found = validate(*scene, **settings(precision=precision))
    assert {dtype for dtype, searching in passes if searching} == {precision}
    assert found.clean_accuracy == pytest.approx(0.75)  # verdicts are float32 in any case
    assert 0 <= found.robust_accuracy < 0.75
    assert model.compute_dtype == torch.float32


def test_shares_are_exact(scene):
    model, held_out, class_weights = scene
    found = validate(model, held_out.first(37), class_weights, **settings(train_attack=by(weak(), scene)))
    for share in (found.clean_accuracy, found.train_attack_accuracy):
        assert share * 37 == pytest.approx(27, abs=1e-12)  # every fourth of 37 is wrong, beginning with the first


def test_training_attack_solves_the_inner_problem_of_the_method(trainer, monkeypatch):
    one = trainer({"method": {"name": "fare"}})
    seen, perturb = [], type(one.attack).perturb

    def spied(self, objective, *arguments):
        seen.append(type(objective))
        return perturb(self, objective, *arguments)

    monkeypatch.setattr(type(one.attack), "perturb", spied)
    one.validate()
    assert set(seen) == {EmbeddingDistance}


def test_model_is_left_as_found(scene):
    model = scene[0]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    validate(*scene, **settings(train_attack=by(PGD, scene)))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_first_takes_the_first(scene):
    held_out = scene[1]
    few = held_out.first(7)
    assert few.keys == held_out.keys[:7]
    assert torch.equal(few.pixels, held_out.pixels[:7])
    assert torch.equal(few.labels, held_out.labels[:7])
    assert torch.equal(few.teacher_embedding, held_out.teacher_embedding[:7])
    assert held_out.first(1000).keys == held_out.keys
    assert HeldOut(held_out.keys, held_out.pixels, None, held_out.teacher_embedding).first(2).labels is None


def test_value_is_what_select_compares():
    assert Validation(1, 0.9, 0.4, 0.5, 0.1, 0.8).value == 0.4
    nan = math.nan
    assert Validation(1, nan, nan, nan, nan, 0.8).value == 0.8


def test_held_out_images_are_those_of_the_data(trainer):
    one = trainer()
    held_out = one.held_out
    assert len(held_out.keys) == len(held_out.pixels) == len(held_out.labels) == 6
    labels = {int(key[-6:]) % 3 for key in held_out.keys}
    assert labels <= {0, 1, 2}
    assert held_out.labels.tolist() == [int(key[-6:]) % 3 for key in held_out.keys]
    torch.testing.assert_close(held_out.teacher_embedding, one.teacher.model.embed_image(held_out.pixels))
    # Not in canonical order: the first 4 of a validation in between are a fair draw of the 6.
    assert held_out.keys != sorted(held_out.keys)
