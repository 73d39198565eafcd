"""MI-DI-FGSM, and points of one model judged by another."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from ironclip.attacks.base import ATTACKS
from ironclip.attacks.diverse import DiverseInputs
from ironclip.attacks.driver import DriverSettings, run_attack
from ironclip.attacks.objectives import Misclassify
from ironclip.attacks.threat_model import ThreatModel
from ironclip.attacks.transfer import craft, judge, transfer
from ironclip.errors import ConfigError, ShapeError
from ironclip.randomness import SampleRandom
from made_up_classifiers import Affine, AffineTask, Free
from made_up_images import natural_like

LINF = ThreatModel(eps="8/256")


def test_without_views_and_momentum_it_is_fgsm_in_steps():
    task = AffineTask(2, seed=0, inner=True)
    attack = DiverseInputs(diversity=0, momentum=0)
    found = attack.perturb(
        Misclassify(task.classifier, task.labels, "margin"), task.pixels, LINF, SampleRandom(0, task.keys)
    )
    fgsm = ATTACKS.create("fgsm", {"loss": "margin"}).perturb(
        Misclassify(task.classifier, task.labels, "margin"), task.pixels, LINF, SampleRandom(0, task.keys)
    )
    torch.testing.assert_close(found, fgsm, rtol=0, atol=1e-6)


def test_a_view_is_the_image_shrunk_as_torch_shrinks_it_on_black():
    pixels = natural_like(1, 20, 30)
    view = DiverseInputs(diversity=1, shrink=0.5).view(pixels, torch.tensor([[0.0, 0.35, 0.5, 0.999]]))
    rows, columns = 10 + int(0.35 * 11), 15 + int(0.35 * 16)
    top, left = int(0.5 * (20 - rows + 1)), int(0.999 * (30 - columns + 1))
    small = F.interpolate(pixels, size=(rows, columns), mode="bilinear", align_corners=False, antialias=False)
    expected = torch.zeros_like(pixels)
    expected[:, :, top : top + rows, left : left + columns] = small
    torch.testing.assert_close(view, expected, rtol=0, atol=1e-6)


def test_views_come_as_often_as_asked_and_each_sample_has_its_own():
    pixels, attack = natural_like(1, 16).expand(400, -1, -1, -1), DiverseInputs(diversity=0.25)
    draws = SampleRandom(0, [str(index) for index in range(400)]).uniform((4,), 0, 1, "view")
    changed = (attack.view(pixels, draws) != pixels).flatten(1).any(dim=1)
    # A view of the full size is the image itself: one in three (14, 15, 16).
    assert abs(changed.float().mean() - 0.25 * 2 / 3) < 0.1
    assert len({tuple(view.flatten().tolist()) for view in attack.view(pixels, draws)[changed]}) > 5


def test_a_gradient_of_zero_gives_no_nan():
    flat = Free(lambda pixels: pixels.flatten(1).sum(1, keepdim=True) * torch.zeros(2))
    objective = Misclassify(flat, torch.zeros(16, dtype=torch.int64))
    pixels = natural_like(16, 8)
    found = DiverseInputs().perturb(objective, pixels, LINF, SampleRandom(0, [str(index) for index in range(16)]))
    assert torch.equal(found, pixels)


def test_transfer_to_itself_is_the_attack_without_early_exit(clip_task):
    task, threat = clip_task(samples=32), ThreatModel(eps="1/255")
    attack, objective = DiverseInputs(steps=4), task.objective()
    whole = transfer(attack, objective, objective, task.pixels, task.keys, threat, seed=3)
    points = craft(attack, objective, task.pixels, task.keys, threat, seed=3)
    attacked = ~whole.clean.broken
    assert torch.equal(whole.adversarial[attacked], points[attacked])
    assert torch.equal(whole.adversarial[~attacked], task.pixels[~attacked])
    assert torch.equal(whole.broken, task.classifier.logits(whole.adversarial).argmax(dim=1) != task.labels)
    # Tiles do not matter.
    again = craft(attack, objective, task.pixels, task.keys, threat, seed=3, settings=DriverSettings(tile=16))
    assert torch.equal(again, points)


def test_what_two_affine_models_share_is_what_transfers():
    """The victim is the surrogate plus an independent part; a minus sign turns the attack into help."""
    task = AffineTask(2, seed=5, samples=200, inner=True)
    own = Misclassify(task.classifier, task.labels, "margin")
    rates = []
    for share in (1.0, 0.5, 0.0):
        noise = AffineTask(2, seed=6, inner=True).weight
        weight = share * task.weight + (1 - share) * noise
        bias = -(task.pixels.flatten(1) @ weight.T).mean(dim=0)
        victim = Affine(weight, bias)
        labels = victim.logits(task.pixels).argmax(dim=1)
        outcome = transfer(
            DiverseInputs(diversity=0), own, Misclassify(victim, labels, "margin"), task.pixels, task.keys, LINF, seed=0
        )
        # Where both agree the attack leads away from the shared label.
        agree = labels == task.labels
        rates.append(outcome.broken[agree].float().mean().item())
    assert rates[0] > rates[1] > rates[2]
    direct = run_attack(ATTACKS.create("fgsm"), own, task.pixels, task.keys, LINF, seed=0)
    assert rates[0] == pytest.approx(direct.broken[~direct.clean.broken].float().mean().item(), abs=0.1)


def test_judged_points_obey_the_driver():
    task = AffineTask(3, seed=0)
    objective = Misclassify(task.classifier, task.labels, "margin")
    outside = (task.pixels + 3 * LINF.radius).clamp(0, 1)
    outcome = judge(objective, outside, task.pixels, task.keys, LINF)
    attacked = ~outcome.clean.broken
    assert outcome.invalid[attacked & (LINF.distance(outside, task.pixels) > LINF.radius * 1.01)].all()
    assert not (outcome.broken & attacked).any()
    unmoved = judge(objective, task.pixels, task.pixels, task.keys, LINF)
    assert torch.equal(unmoved.broken, unmoved.clean.broken)


def test_errors():
    task = AffineTask(3, seed=0)
    objective = Misclassify(task.classifier, task.labels)
    with pytest.raises(ShapeError, match="Give one point an image"):
        judge(objective, task.pixels[:3], task.pixels, task.keys, LINF)
    with pytest.raises(ConfigError, match="1 sample keys occur twice"):
        judge(objective, task.pixels, task.pixels, [*task.keys[:-1], task.keys[0]], LINF)
    for wrong, words in (
        ({"steps": 0}, "0 steps"),
        ({"rel_step_size": 0.0}, "rel_step_size is 0"),
        ({"momentum": -1.0}, "momentum is -1"),
        ({"diversity": 1.5}, "diversity is 1.5"),
        ({"shrink": 0.0}, "shrink is 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            dataclasses.replace(DiverseInputs(), **wrong)
