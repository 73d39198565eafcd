from __future__ import annotations

import dataclasses

import pytest
import torch

from ironclip.attacks.driver import DriverSettings
from ironclip.attacks.objectives import Misclassify
from ironclip.attacks.threat_model import ThreatModel
from ironclip.attacks.transfer import judge
from ironclip.attacks.universal import UniversalPerturbation, applied
from ironclip.errors import ConfigError, ShapeError
from made_up_classifiers import AffineTask

LINF, L2 = ThreatModel(eps="16/256"), ThreatModel(norm="l2", eps="0.25")


def one_class(seed: int = 0):
    """Samples of one class of an affine model, away from the box: what is worst for one is worst for all."""
    task = AffineTask(2, seed=seed, samples=80, inner=True)
    chosen = task.classifier.logits(task.pixels).argmax(dim=1) == 0
    return task, task.pixels[chosen], (task.weight[1] - task.weight[0]).view(3, 4, 4)


def objective(task, count, loss="margin"):
    return Misclassify(task.classifier, torch.zeros(count, dtype=torch.int64), loss)


def test_in_linf_it_is_the_corner_along_the_slope():
    task, pixels, slope = one_class()
    delta = UniversalPerturbation().find(objective(task, len(pixels)), pixels, LINF)
    torch.testing.assert_close(delta[slope != 0], LINF.radius * slope[slope != 0].sign())


def test_in_l2_it_is_the_slope_scaled_to_the_radius():
    task, pixels, slope = one_class()
    delta = UniversalPerturbation(steps=60).find(objective(task, len(pixels)), pixels, L2)
    torch.testing.assert_close(delta, L2.radius * slope / slope.norm(), rtol=0, atol=1e-4)


def test_it_breaks_images_that_it_was_not_made_on():
    task, pixels, slope = one_class()
    half = len(pixels) // 2
    delta = UniversalPerturbation().find(objective(task, half, "ce"), pixels[:half], LINF)
    rest = pixels[half:]
    keys = [str(index) for index in range(len(rest))]
    outcome = judge(objective(task, len(rest)), applied(rest, delta), rest, keys, LINF)
    margin = task.classifier.logits(rest)[:, 0] - task.classifier.logits(rest)[:, 1]
    exact = margin <= LINF.radius * slope.abs().sum()
    assert exact.any()
    assert torch.equal(outcome.broken, exact)


def test_tiles_and_order_change_nothing_beyond_rounding():
    task, pixels, _ = one_class(seed=2)
    whole = UniversalPerturbation().find(objective(task, len(pixels)), pixels, L2)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    again = UniversalPerturbation().find(
        objective(task, len(pixels)), pixels[order], L2, settings=DriverSettings(tile=16)
    )
    torch.testing.assert_close(again, whole, rtol=0, atol=1e-6)


def test_the_ceiling_takes_lost_images_out():
    """All images above it: no gradient, no perturbation."""
    task, pixels, _ = one_class()
    capped = dataclasses.replace(UniversalPerturbation(), ceiling=-1e6)
    assert not capped.find(objective(task, len(pixels)), pixels, LINF).any()


def test_errors():
    task, pixels, _ = one_class()
    with pytest.raises(ConfigError, match="steps is 0"):
        UniversalPerturbation(steps=0)
    with pytest.raises(ConfigError, match="rel_step_size is 0"):
        UniversalPerturbation(rel_step_size=0)
    with pytest.raises(ShapeError, match="no images"):
        UniversalPerturbation().find(objective(task, 0), pixels[:0], LINF)
    with pytest.raises(ShapeError, match="Find it on images of the same size"):
        applied(pixels, torch.zeros(3, 2, 2))
