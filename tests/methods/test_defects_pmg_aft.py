"""Defects of published code that concern PMG-AFT (methods plan 6): each check passes ours and fails a planted copy."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ironclip.attacks.objectives import input_gradient
from ironclip.data.contract import Sample
from ironclip.methods.base import METHODS, Batch, ImageView, Views
from ironclip.models.preprocessing import CLIP_MEAN, CLIP_STD
from ironclip.models.zero_shot import encode_classes
from ironclip.training import trainer as trainer_module
from ironclip.training.validation import HeldOut
from made_up_images import natural_like
from made_up_views import made_up_parts, views_of


def scored_share(one, monkeypatch):
    """Share of the held-out images that the validation's figures rest on, by what the model was shown clean."""
    pixels = natural_like(40, 32, seed=5)
    labels = torch.arange(40) % 3
    with torch.no_grad():
        embedding = one.model.embed_image(pixels)
    one.trainer.held_out = HeldOut([f"held/{row}" for row in range(40)], pixels, labels, embedding)
    shown, embed = set(), type(one.model).embed_image

    def spied(self, given):
        shown.update(row for row in range(40) if (given == pixels[row]).flatten(1).all(dim=1).any())
        return embed(self, given)

    with monkeypatch.context() as patch:
        patch.setattr(type(one.model), "embed_image", spied)
        validation = one.trainer.validate()
    return len(shown) / 40, validation.samples


def test_d02_the_validation_scores_every_held_out_image(bench, monkeypatch):
    attack = {"name": "pgd_m", "steps": 1}
    assert scored_share(bench("pmg_aft", attack=attack), monkeypatch) == (1.0, 40)
    first = HeldOut.first
    monkeypatch.setattr(HeldOut, "first", lambda self, count: first(self, count // 20))  # every twentieth batch
    assert scored_share(bench("pmg_aft", attack=attack), monkeypatch) == (0.05, 2)


def update_is_that_of_the_loss(bench, monkeypatch, perturb=None):
    """The optimiser sees the gradient of the loss on the attacked images, and nothing else."""
    one, twin = bench("pmg_aft", shift=0.02), bench("pmg_aft", shift=0.02)
    own, kept = type(one.trainer.attack).perturb, []

    def spied(self, *arguments):
        kept.append((perturb or own)(self, *arguments))
        return kept[-1]

    with monkeypatch.context() as patch:
        patch.setattr(type(one.trainer.attack), "perturb", spied)
        found = one.gradients()
    batch, parameters = twin.batch, twin.trainer.parameters
    terms = twin.trainer.method.loss(
        Views("pmg_aft", batch, twin.trainer._passes(batch, kept[0]), twin.model.logit_scale.detach())
    )
    expected = torch.autograd.grad(sum(terms.values()), list(parameters.values()))

    def agrees(name, gradient):
        length = torch.linalg.vector_norm(gradient)
        return torch.linalg.vector_norm(found[name] - gradient) <= 1e-4 * length + 1e-7

    return all(agrees(*pair) for pair in zip(parameters, expected, strict=True))


def test_d03_the_attacks_gradients_do_not_reach_the_update(bench, monkeypatch):
    assert update_is_that_of_the_loss(bench, monkeypatch)

    def by_a_backward_pass(self, objective, pixels, threat, random):
        point = threat.random_start(pixels, random).requires_grad_(True)
        objective(point).mean().backward()
        return threat.project(point.detach() + threat.steepest_ascent(point.grad), pixels)

    assert not update_is_that_of_the_loss(bench, monkeypatch, by_a_backward_pass)


def logit_of_a_perfect_match(method):
    """What stands before the cosine in the loss, read from the cross-entropy of two orthogonal classes."""
    axes = torch.eye(2, dtype=torch.float64)
    batch = Batch(["0"], torch.zeros(1, 3, 8, 8), torch.tensor([1]), (), axes)
    seen = ImageView(3.7 * axes[:1], axes)
    views = Views("pmg_aft", batch, dict.fromkeys(method.needs, seen), torch.tensor(100.0, dtype=torch.float64))
    return math.log(math.expm1(method.loss(views)["ce"].item()))


def reads_clips_statistics(method, model):
    preprocessing = method.preprocessing(model.spec.preprocessing)
    return (preprocessing.mean, preprocessing.std) == (CLIP_MEAN, CLIP_STD)


def is_a_mean(method):
    """A batch of every sample twice has the same loss."""
    parts = made_up_parts()
    twice = {
        name: value if name == "text" else value.repeat(2, *[1] * (value.ndim - 1)) for name, value in parts.items()
    }
    once, doubled = (sum(method.loss(views_of("pmg_aft", one)).values()).item() for one in (parts, twice))
    return doubled == pytest.approx(once)


def target_is_stopped(method):
    parts = made_up_parts(spread=0.3)
    clean = parts["clean"].clone().requires_grad_()
    adv = parts["adv"].clone().requires_grad_()
    sum(method.loss(views_of("pmg_aft", parts | {"clean": clean, "adv": adv})).values()).backward()
    return clean.grad is None


@pytest.mark.parametrize("general", ["prediction", "feature"])
def test_d05_scale_statistics_mean_and_target_are_those_of_the_paper(general, tiny_clip):
    """The published code is the planted copy, since `variant: code` reproduces it."""
    paper, code = (METHODS.create("pmg_aft", {"general": general, "variant": name}) for name in ("paper", "code"))
    model = tiny_clip()
    assert abs(logit_of_a_perfect_match(paper) - 100) < 1e-3
    assert abs(logit_of_a_perfect_match(code) - 1) < 1e-3
    for check in (is_a_mean, target_is_stopped):
        assert check(paper)
        assert not check(code)
    assert reads_clips_statistics(paper, model)
    assert not reads_clips_statistics(code, model)


def leaves_class_names_alone(one):
    before = list(one.trainer.data.class_names)
    one.step()
    return list(one.trainer.data.class_names) == before == list(one.trainer.prompts[0])


def test_d24_class_names_are_not_changed_in_place(bench, monkeypatch):
    def named(one):
        names = ["Great_White", "T-shirt/top", "dog"]
        one.trainer.data.class_names, one.trainer.prompts = names, (names, one.trainer.prompts[1])
        return one

    assert leaves_class_names_alone(named(bench("pmg_aft")))

    def refining(model, names, templates):
        for index, name in enumerate(names):
            names[index] = name.lower().replace("_", " ").replace("-", " ").replace("/", " ")
        return encode_classes(model, names, templates)

    monkeypatch.setattr(trainer_module, "encode_classes", refining)
    assert not leaves_class_names_alone(named(bench("pmg_aft")))


def share_of_zeros(gradient):
    return (gradient == 0).float().mean().item()


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_d37_the_input_gradient_does_not_vanish_in_low_precision(variant, bench):
    one = bench("pmg_aft", options={"variant": variant}, classes=10)
    with torch.no_grad():
        one.model.log_logit_scale.fill_(math.log(400))  # as sure of itself as CLIP is of an easy image
        features = F.normalize(one.model.embed_image(one.batch.pixels), dim=-1)
    guesses = (features @ one.batch.class_weights.T).argmax(dim=1).tolist()
    one.samples = [Sample(s.key, s.pixels, guess) for s, guess in zip(one.samples, guesses, strict=True)]
    objective = one.trainer.method.adversaries(one.batch, one.model, one.trainer.teacher)["image"].objective
    wide, _ = input_gradient(objective, one.batch.pixels)
    with objective.computing(torch.bfloat16):
        narrow, _ = input_gradient(objective, one.batch.pixels)
    assert abs(share_of_zeros(narrow) - share_of_zeros(wide)) <= 1e-3
    assert share_of_zeros(wide) <= 1e-3
    if variant == "paper":
        half = (wide / len(guesses)).half()  # a batch mean without loss scaling, as float16 holds it
        assert share_of_zeros(half) > 0.1
