from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from ironclip.attacks.driver import run_attack
from ironclip.attacks.fgsm import FGSM
from ironclip.attacks.objectives import Evaluation, Misclassify, Objective
from ironclip.attacks.threat_model import ThreatModel
from ironclip.models.zero_shot import PythonClassifier
from ironclip.randomness import SampleRandom
from made_up_classifiers import AffineTask
from made_up_images import natural_like
from oracles.affine import worst_margin_l2, worst_margin_linf


def worst_margins(task: AffineTask, eps: Fraction) -> list[Fraction]:
    weight, bias = task.weight.tolist(), task.bias.tolist()
    pixels, labels = task.pixels.flatten(1).tolist(), task.labels.tolist()
    return [worst_margin_linf(weight, bias, x, y, eps) for x, y in zip(pixels, labels, strict=True)]


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
@pytest.mark.parametrize("eps", ["4/256", "16/256", "48/256"])
@pytest.mark.parametrize("seed", range(3))
def test_robust_accuracy_of_two_classes_is_the_closed_form(seed, eps, loss):
    """No float is rounded here, so not even a tie may come out otherwise."""
    task = AffineTask(2, seed)
    classifier = PythonClassifier(lambda pixels: pixels.flatten(1) @ task.weight.T + task.bias)
    objective = Misclassify(classifier, task.labels, loss=loss)
    outcome = run_attack(FGSM(), objective, task.pixels, task.keys, ThreatModel(eps=eps), seed=0)
    exact = worst_margins(task, Fraction(eps))
    assert outcome.broken.tolist() == [margin <= 0 for margin in exact]
    right = ~outcome.clean.broken
    assert 0 < right.sum() < len(right)
    found = [Fraction(-margin) for margin in outcome.final.margin[right].tolist()]
    assert found == [margin for margin, kept in zip(exact, right.tolist(), strict=True) if kept]


def test_a_tie_at_the_corner_is_a_break_and_a_hair_less_is_not():
    pixels, labels = torch.full((2, 3, 1, 1), 0.5), torch.tensor([0, 1])
    weight = torch.tensor([[0.5, -0.25, 0.25], [0.0, 0.0, 0.0]])
    for hair, broken in ((0.0, True), (2.0**-12, False)):
        # Margin of the first sample at the corner: w.x + b - eps * sum|w| = hair; of the second: far below 0.
        bias = torch.tensor([hair + 1 / 16 - 0.25, 0.0])
        classifier = PythonClassifier(lambda x, bias=bias: x.flatten(1) @ weight.T + bias)
        outcome = run_attack(
            FGSM(), Misclassify(classifier, labels), pixels, ["a", "b"], ThreatModel(eps="16/256"), seed=0
        )
        assert outcome.broken.tolist() == [broken, True]
        assert outcome.final.margin[0].item() == -hair


@pytest.mark.parametrize("classes", [3, 10])
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_more_classes_are_never_below_the_exact_worst_margin(classes, loss):
    task = AffineTask(classes, seed=5)
    objective = Misclassify(task.classifier, task.labels, loss=loss)
    outcome = run_attack(FGSM(), objective, task.pixels, task.keys, ThreatModel(eps="24/256"), seed=0)
    for margin, worst, broken in zip(
        outcome.final.margin.tolist(), worst_margins(task, Fraction(24, 256)), outcome.broken.tolist(), strict=True
    ):
        assert -margin >= worst
        assert not (broken and worst > 0)


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_one_unit_step_is_exact_in_l2_where_the_box_is_far(loss):
    task, threat = AffineTask(2, seed=3, inner=True), ThreatModel(norm="l2", eps="0.25")
    objective = Misclassify(task.classifier, task.labels, loss=loss)
    outcome = run_attack(FGSM(), objective, task.pixels, task.keys, threat, seed=0)
    weight, bias = task.weight.double().numpy(), task.bias.double().numpy()
    exact = np.array(
        [
            worst_margin_l2(weight, bias, x, y, threat.radius)
            for x, y in zip(task.pixels.flatten(1).double().numpy(), task.labels.tolist(), strict=True)
        ]
    )
    right = ~outcome.clean.broken.numpy()
    assert np.abs(exact[right]).min() > 1e-5  # far enough from a tie for float32
    assert outcome.broken.tolist() == (exact <= 0).tolist()
    assert 0 < (exact[right] <= 0).sum() < right.sum()
    np.testing.assert_allclose(-outcome.final.margin.numpy()[right], exact[right], atol=2e-6)


class Known(Objective):
    """Linear, with a given gradient; notes the points it is asked about."""

    def __init__(self, slope: torch.Tensor) -> None:
        self.slope, self.points = slope, []

    def evaluate(self, pixels):
        self.points.append(pixels.detach().clone())
        return Evaluation((self.slope * pixels).sum((1, 2, 3)), torch.zeros(len(pixels), dtype=torch.bool))

    def take(self, rows):
        return Known(self.slope[rows])


def test_it_is_one_full_step_along_the_sign_and_costs_one_gradient():
    pixels = natural_like(4, 6)
    slope = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    slope[:, :, 2] = 0
    objective = Known(slope)
    found = FGSM().perturb(objective, pixels, ThreatModel(eps="8/255"), SampleRandom(0, list("abcd")))
    assert torch.equal(found, (pixels + torch.tensor(8 / 255) * slope.sign()).clamp(0, 1))
    assert torch.equal(found[:, :, 2], pixels[:, :, 2])
    assert len(objective.points) == 1
    assert torch.equal(objective.points[0], pixels)


def test_it_returns_its_point_also_where_that_is_worse():
    """As published; a loss that falls along the step shows a curved model, not a better adversary."""

    class Hill(Known):
        def evaluate(self, pixels):
            return Evaluation(-(pixels - 0.51).square().sum((1, 2, 3)), torch.zeros(len(pixels), dtype=torch.bool))

    pixels = torch.full((1, 3, 2, 2), 0.5)
    found = FGSM().perturb(Hill(pixels), pixels, ThreatModel(eps="25/255"), SampleRandom(0, ["a"]))
    torch.testing.assert_close(found, pixels + 25 / 255)
