"""The 8-bit adversary: what it returns survives a PNG file, and it is as strong as the grid allows."""

from __future__ import annotations

import dataclasses
import io
import itertools

import pytest
import torch
from PIL import Image

from ironclip.attacks.base import ATTACKS
from ironclip.attacks.driver import run_attack
from ironclip.attacks.grid import OnGrid, snap
from ironclip.attacks.objectives import Misclassify, input_gradient
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError, ValueRangeError
from made_up_classifiers import Affine
from made_up_images import from_pil, natural_like, to_pil
from quick_attacks import quick

GAMES = [
    ThreatModel(eps="2/255", integer=True),
    ThreatModel(eps="5/510", integer=True),
    ThreatModel(norm="l2", eps="0.05", integer=True),
]


def levels(count: int, side: int = 4, *, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), generator=random) / 255


def affine(classes: int = 3, side: int = 4, seed: int = 0) -> Affine:
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, 3 * side * side, generator=random)
    return Affine(weight, -weight.sum(dim=1) / 2)


@pytest.mark.parametrize("threat", GAMES, ids=str)
def test_snapped_points_are_legal_and_snapping_twice_changes_nothing(threat):
    origin = levels(64)
    random = torch.Generator().manual_seed(1)
    wild = (origin + 4 * threat.radius * torch.randn(origin.shape, generator=random)).clamp(0, 1)
    near = snap(wild, origin, threat)
    assert threat.contains(near, origin).all()
    assert torch.equal(snap(near, origin, threat), near)
    assert torch.equal(snap(origin, origin, threat), origin)


def test_in_linf_the_snapped_point_is_the_nearest_by_exhaustion():
    threat, origin = ThreatModel(eps="2/255", integer=True), torch.tensor([1, 128, 255]).view(1, 3, 1, 1) / 255
    for shift in itertools.product((-3.4, -1.6, -0.4, 0.6, 2.4), repeat=3):
        point = (origin + torch.tensor(shift).view(1, 3, 1, 1) / 255).clamp(0, 1)
        allowed = [
            [level for level in range(256) if abs(level - round(255 * float(home))) <= 2] for home in origin.flatten()
        ]
        best = [
            min(choice, key=lambda level, at=float(at): abs(level / 255 - at))
            for choice, at in zip(allowed, point.flatten(), strict=True)
        ]
        assert (255 * snap(point, origin, threat)).round().flatten().tolist() == best


@pytest.mark.parametrize("threat", GAMES, ids=str)
@pytest.mark.parametrize("name", [*ATTACKS.names("image")])
def test_every_attack_plays_it_and_its_images_survive_a_png(name, threat):
    attack = quick(name)
    try:
        attack.check(threat)
    except ConfigError as error:
        pytest.skip(error.problem)
    classifier, pixels = affine(), levels(32)
    labels = classifier.logits(pixels).argmax(dim=1)
    keys = [str(index) for index in range(len(pixels))]
    outcome = run_attack(attack, Misclassify(classifier, labels, attack.loss), pixels, keys, threat, seed=0)
    assert not outcome.invalid.any()
    assert threat.contains(outcome.adversarial, pixels).all()
    for image, broken, label in zip(outcome.adversarial, outcome.broken, labels, strict=True):
        file = io.BytesIO()
        to_pil(image).save(file, "PNG")
        read = from_pil(Image.open(file)).float()
        assert torch.equal(read, image)
        assert (classifier.logits(read[None]).argmax() != label) == broken


def test_on_an_affine_model_sign_steps_reach_the_best_corner_of_the_grid():
    """eps = 2.5 levels: the best 8-bit corner is 2 levels away."""
    classifier, pixels = affine(classes=2, seed=3), levels(64, seed=3)
    labels = classifier.logits(pixels).argmax(dim=1)
    threat, attack = ThreatModel(eps="5/510", integer=True), ATTACKS.create("apgd", {"steps": 30, "loss": "margin"})
    keys = [str(index) for index in range(len(pixels))]
    outcome = run_attack(attack, Misclassify(classifier, labels, "margin"), pixels, keys, threat, seed=0)
    slope = (classifier.weight[labels] - classifier.weight[1 - labels]).detach().view_as(pixels)
    corner = (255 * pixels - 2 * slope.sign()).round().clamp(0, 255) / 255
    exact = classifier.logits(corner).gather(1, labels[:, None]) <= classifier.logits(corner).gather(
        1, 1 - labels[:, None]
    )
    assert 0 < exact.sum() < 64
    assert torch.equal(outcome.broken, exact[:, 0])
    standing = ~outcome.broken
    torch.testing.assert_close(outcome.adversarial[standing], corner[standing], rtol=0, atol=1e-6)
    # The float adversary of the same radius is the stronger one.
    free = dataclasses.replace(threat, integer=False)
    freely = run_attack(attack, Misclassify(classifier, labels, "margin"), pixels, keys, free, seed=0)
    assert (freely.broken >= outcome.broken).all()


def test_gradients_pass_the_rounding():
    classifier, pixels = affine(), levels(4)
    objective = Misclassify(classifier, torch.zeros(4, dtype=torch.int64), "margin")
    threat = ThreatModel(eps="4/255", integer=True)
    points = (pixels + 0.3 / 255).clamp(0, 1)
    gradient, evaluation = input_gradient(OnGrid(objective, pixels, threat), points)
    expected, there = input_gradient(objective, snap(points, pixels, threat))
    assert torch.equal(gradient, expected)
    assert torch.equal(evaluation.value, there.value)
    assert gradient.abs().sum() > 0


def test_images_off_the_grid_are_refused():
    pixels, labels = natural_like(2, 4), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueRangeError, match=r"of a level off the 8-bit grid[^\n]*\n.*threat\.integer off"):
        run_attack(quick("pgd"), Misclassify(affine(), labels), pixels, ["a", "b"], GAMES[0], seed=0)
