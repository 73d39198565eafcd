"""TTC against a slow version of itself, and static against adaptive evaluation of it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ironclip.attacks.apgd import APGD
from ironclip.attacks.driver import run_attack
from ironclip.attacks.objectives import Misclassify
from ironclip.attacks.threat_model import ThreatModel
from ironclip.attacks.transfer import transfer
from ironclip.errors import ConfigError
from ironclip.models.ttc import Counterattacked
from ironclip.models.zero_shot import FixedClasses
from made_up_images import natural_like

PIXELS = natural_like(48, 32, seed=3)
KEYS = [f"made-up/{index:03d}" for index in range(48)]


@pytest.fixture(scope="module")
def classifier(tiny_clip):
    model = tiny_clip()
    with torch.no_grad():
        middle = model.image_features(natural_like(64, 32, seed=5)).mean(dim=0)
        prototypes = model.image_features(natural_like(10, 32, seed=4))
    return FixedClasses(model, F.normalize(prototypes - middle, dim=1))


def slow(defence: Counterattacked, image: torch.Tensor) -> torch.Tensor:
    """The algorithm of the paper for one image, step by step, in float64."""
    model, home_image = defence.inner.model, image.double()[None]
    with model.computing(torch.float64):
        noise = defence._noise(image[None]).double()
        delta = (home_image + noise).clamp(0, 1) - home_image
        home = model.embed_image(home_image).detach()
        tau = (model.embed_image(home_image + delta) - home).norm() / home.norm()
        deltas = [delta]
        for _ in range(defence.steps):
            leaf = (home_image + delta).requires_grad_(True)
            (slope,) = torch.autograd.grad(((model.embed_image(leaf) - home) ** 2).sum(), leaf)
            delta = delta + defence.step_size * slope.sign()
            delta = delta.clamp(-defence.radius, defence.radius)
            delta = (home_image + delta).clamp(0, 1) - home_image
            deltas.append(delta.detach())
    if tau >= defence.threshold:
        return (home_image + deltas[0])[0]
    weights = [math.exp(defence.growth * step) for step in range(len(deltas))]
    return (home_image + sum(w * d for w, d in zip(weights, deltas, strict=True)) / sum(weights))[0]


@pytest.mark.parametrize("threshold", [0.0, math.inf])
def test_is_the_slow_algorithm(classifier, threshold):
    defence = Counterattacked(classifier, threshold=threshold)
    found = defence.defended(PIXELS[:4])
    for image, expected in zip(found, (slow(defence, image) for image in PIXELS[:4]), strict=True):
        # A sign may differ where float32 does not know it.
        assert ((image - expected).abs() < 1e-5).double().mean() > 0.995
    assert ((found - PIXELS[:4]).abs() <= 4 / 255 + 1e-6).all()


def test_the_threshold_decides_image_by_image(classifier):
    shifts = Counterattacked(classifier, threshold=0)
    with torch.no_grad():
        home = classifier.model.embed_image(PIXELS)
        shift = (classifier.model.embed_image(shifts.defended(PIXELS)) - home).norm(dim=1) / home.norm(dim=1)
    defence = Counterattacked(classifier, threshold=float(shift.median()))
    noise_only = (defence.defended(PIXELS) == shifts.defended(PIXELS)).flatten(1).all(dim=1)
    assert torch.equal(noise_only, shift >= shift.median())


def test_an_image_is_answered_alike_alone_and_in_a_batch(classifier):
    defence = Counterattacked(classifier)
    whole = defence.logits(PIXELS)
    torch.testing.assert_close(defence.logits(PIXELS[7:8]), whole[7:8], rtol=0, atol=1e-3)
    assert torch.equal(defence.logits(PIXELS), whole)


def test_gradients_pass_the_defence_and_leave_the_model_without_any(classifier):
    defence = Counterattacked(classifier, threshold=math.inf)
    pixels = PIXELS[:2].clone().requires_grad_(True)
    defended = defence.defended(pixels)
    defended.sum().backward()
    inside = (defended > 0) & (defended < 1)
    assert torch.equal(pixels.grad[inside], torch.ones_like(pixels.grad[inside]))
    assert all(parameter.grad is None for parameter in classifier.parameters())
    with torch.no_grad():
        assert not defence.logits(PIXELS[:2]).requires_grad


def test_static_evaluation_flatters_the_defence_and_the_adaptive_one_does_not(classifier):
    """Level L0: images made against the bare model. Level L2: the same attack through the defence."""
    defence, threat = Counterattacked(classifier), ThreatModel(eps="1/255", adaptive_level="L2")
    with torch.no_grad():
        labels = defence.logits(PIXELS).argmax(dim=1)
    attack = APGD(steps=20, loss="margin")
    bare, defended = Misclassify(classifier, labels, "margin"), Misclassify(defence, labels, "margin")
    static = transfer(attack, bare, defended, PIXELS, KEYS, threat, seed=0)
    adaptive = run_attack(attack, defended, PIXELS, KEYS, threat, seed=0)
    undefended = run_attack(attack, bare, PIXELS, KEYS, threat, seed=0)
    robust = [1 - outcome.broken.double().mean().item() for outcome in (static, adaptive, undefended)]
    assert robust[0] > robust[1] + 0.1
    answers = defence.logits(adaptive.adversarial).argmax(dim=1)
    assert ((answers != labels) == adaptive.broken).double().mean() > 0.97
    assert threat.contains(adaptive.adversarial, PIXELS).all()


def test_settings_that_make_no_sense_are_refused(classifier):
    for wrong in ({"steps": 0}, {"radius": 0.0}, {"step_size": -1.0}):
        with pytest.raises(ConfigError, match=r"TTC with .*\nGive positive numbers"):
            Counterattacked(classifier, **wrong)
