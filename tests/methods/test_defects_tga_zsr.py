"""Defects of published code that concern TGA-ZSR and Comp-TGA (methods plan 6): each check fails a planted copy."""

from __future__ import annotations

import math

import pytest
import torch

from ironclip.attacks.objectives import input_gradient
from ironclip.losses.attention_map import attention_map, patch_cosines, token_axis_scores
from ironclip.methods.base import METHODS
from ironclip.models.zero_shot import encode_classes
from ironclip.randomness import SampleRandom
from ironclip.training.trainer import Trainer

NAMES = ("tga_zsr", "comp_tga")


def leaves_gradients(one, attack):
    batch = one.batch
    objective = one.trainer.method.adversaries(batch, one.model, one.trainer.teacher)["image"].objective
    attack(objective, batch.pixels, one.trainer.recipe.build_threat(), SampleRandom(0, batch.keys))
    return any(parameter.grad is not None for parameter in one.trainer.parameters.values())


@pytest.mark.parametrize("name", NAMES)
def test_d03_an_attack_leaves_no_gradient_in_the_parameters(name, bench):
    one = bench(name)
    assert not leaves_gradients(one, one.trainer.attack.perturb)

    def by_a_backward_pass(objective, pixels, threat, random):
        point = threat.random_start(pixels, random).requires_grad_(True)
        objective(point).sum().backward()
        return threat.project(point + threat.steepest_ascent(point.grad), pixels)

    assert leaves_gradients(one, by_a_backward_pass)


def stands_alone(scores):
    """A patch's score is its own cosine: other tokens change nothing, and rows have unit length."""
    random = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 10, 6, generator=random, dtype=torch.float64)
    text = torch.eye(6, dtype=torch.float64)[:1]
    other = tokens.clone()
    other[:, 5:] *= 3
    left = torch.equal(scores(tokens, text)[:, :4], scores(other, text)[:, :4])
    # Over an orthonormal set of texts the squared cosines of a unit row add up to 1.
    squares = sum(scores(tokens, axis[None]).square() for axis in torch.eye(6, dtype=torch.float64))
    return left and torch.allclose(squares, torch.ones_like(squares))


def test_d08_a_patch_is_scored_by_its_cosine_unless_the_published_map_is_asked_for():
    assert stands_alone(lambda tokens, text: patch_cosines(tokens[:, 1:], text))
    assert not stands_alone(token_axis_scores)
    assert all(METHODS.create(name).variant == "paper" for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_d08_the_variant_decides_which_map_it_is(name, bench):
    paper, code = (bench(name, options={"variant": variant}, shift=0.02).step() for variant in ("paper", "code"))
    assert paper["ce"] == pytest.approx(code["ce"], rel=1e-4)
    assert paper["adv_map"] != pytest.approx(code["adv_map"], rel=0.01)


def features_are_those_of_the_prompts(one):
    """Of this run's names, templates and weights, in float32; and the negative prompts are others than the positive."""
    trainer, batch = one.trainer, one.batch
    names, templates = trainer.prompts
    fresh = encode_classes(one.model, names, templates)
    negative = encode_classes(one.model, names, [trainer.method.negative_template])
    return (
        torch.equal(batch.class_weights, fresh)
        and torch.equal(batch.extra_class_weights["negative"], negative)
        and not torch.equal(fresh, negative)
    )


def test_d10_text_features_are_never_those_of_other_prompts_or_weights(bench, monkeypatch):
    assert features_are_those_of_the_prompts(bench("comp_tga", classes=10))
    stored = {}

    def by_their_number(self, names, templates):
        if len(names) not in stored:
            stored[len(names)] = encode_classes(self.model, names, templates).detach().half()
        return stored[len(names)].float()

    monkeypatch.setattr(Trainer, "_encode", by_their_number)
    assert not features_are_those_of_the_prompts(bench("comp_tga", classes=10))


def share_of_zeros(gradient):
    return (gradient == 0).float().mean().item()


@pytest.mark.parametrize("name", NAMES)
def test_d37_the_input_gradient_does_not_vanish_in_low_precision(name, bench):
    one = bench(name, classes=10)
    with torch.no_grad():
        one.model.log_logit_scale.fill_(math.log(400))  # as sure of itself as CLIP is of an easy image
        labels = one.trainer.method.adversaries(one.batch, one.model, one.trainer.teacher)["image"].objective
        guesses = labels.classifier.logits(one.batch.pixels).argmax(dim=1)
    batch = type(one.batch)(**(vars(one.batch) | {"labels": guesses}))
    objective = one.trainer.method.adversaries(batch, one.model, one.trainer.teacher)["image"].objective
    wide, _ = input_gradient(objective, batch.pixels)
    with objective.computing(torch.bfloat16):
        narrow, _ = input_gradient(objective, batch.pixels)
    assert abs(share_of_zeros(narrow) - share_of_zeros(wide)) <= 1e-3
    assert share_of_zeros(wide) <= 1e-3
    half = (wide / len(batch)).half()  # a batch mean without loss scaling, as float16 holds it
    assert share_of_zeros(half) > 0.1


def follows_the_papers_weights(terms_of):
    """The attacked image's map weighs 0.08, the clean one's 0.05."""
    terms = terms_of()
    return terms["adv_map"] / terms["clean_map"] == pytest.approx(0.08 / 0.05, rel=1e-6)


def test_d38_the_two_map_weights_are_not_swapped(bench, monkeypatch):
    """Where both maps are equally far off (no perturbation), the terms differ by their weights alone."""

    def terms_of(**weights):
        return bench("tga_zsr", options=weights, shift=0.02, eps="0", count=4).step()

    assert follows_the_papers_weights(terms_of)
    assert not follows_the_papers_weights(lambda: terms_of(adv_map_weight=0.05, clean_map_weight=0.08))
    comp = METHODS.create("comp_tga")
    assert (comp.adv_map_weight, comp.clean_map_weight) == (0.10, 0.07)


def test_a_map_without_contrast_is_no_division_by_zero():
    scores = torch.full((1, 4), 0.3)
    assert (attention_map(scores, 8) == 0).all()
    low, high = scores.amin(), scores.amax()
    assert ((scores - low) / (high - low)).isnan().all()  # as published
