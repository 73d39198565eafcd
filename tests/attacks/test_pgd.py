from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from ironclip.attacks.base import State
from ironclip.attacks.driver import run_attack
from ironclip.attacks.objectives import Evaluation, Misclassify, Objective
from ironclip.attacks.pgd import PGD, RobustVLMPGD, TrainingPGD
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError, ShapeError, ValueRangeError
from ironclip.models.zero_shot import PythonClassifier
from ironclip.randomness import SampleRandom
from made_up_classifiers import Affine, AffineTask, Free
from made_up_images import natural_like
from oracles.affine import worst_delta_l2, worst_margin_l2, worst_margin_linf


def worst_margins(task: AffineTask, threat: ThreatModel) -> np.ndarray:
    """Exact worst margins; in linf computed in fractions, here only compared with 0 and up to 1e-6."""
    weight, bias, pixels = task.weight, task.bias, task.pixels.flatten(1)
    if threat.norm == "linf":
        worst = [
            worst_margin_linf(weight.tolist(), bias.tolist(), x, y, Fraction(threat.radius))
            for x, y in zip(pixels.tolist(), task.labels.tolist(), strict=True)
        ]
    else:
        worst = [
            worst_margin_l2(weight.double().numpy(), bias.double().numpy(), x, y, threat.radius)
            for x, y in zip(pixels.double().numpy(), task.labels.tolist(), strict=True)
        ]
    return np.array([float(margin) for margin in worst])


# Closed forms, evaluation plan 2.14


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
@pytest.mark.parametrize("eps", ["4/256", "16/256", "48/256"])
@pytest.mark.parametrize("seed", range(3))
def test_robust_accuracy_of_two_classes_is_the_closed_form(seed, eps, loss):
    task, threat = AffineTask(2, seed), ThreatModel(eps=eps)
    objective = Misclassify(task.classifier, task.labels, loss=loss)
    outcome = run_attack(PGD(), objective, task.pixels, task.keys, threat, seed=seed)
    exact = worst_margins(task, threat)
    assert outcome.broken.tolist() == (exact <= 0).tolist()
    assert 0 < outcome.clean.broken.sum() < len(exact)
    survivors = ~outcome.broken.numpy()
    np.testing.assert_allclose(-outcome.final.margin.numpy()[survivors], exact[survivors], atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_robust_accuracy_of_a_users_real_valued_classifier_is_the_closed_form(seed):
    random = torch.Generator().manual_seed(seed)
    task, threat = AffineTask(2, seed), ThreatModel(eps="4/255")
    task.weight = torch.randn(2, 48, generator=random)
    task.pixels = natural_like(40, 4, seed=seed)
    logits = task.pixels.flatten(1) @ task.weight.T
    task.bias = -logits.mean(dim=0)
    task.labels = (logits + task.bias).argmax(dim=1)
    exact = worst_margins(task, threat)
    assert np.abs(exact).min() > 1e-5  # far enough from a tie for float32
    assert 0 < (exact <= 0).sum() < 40
    classifier = PythonClassifier(lambda pixels: pixels.flatten(1) @ task.weight.T + task.bias)
    outcome = run_attack(PGD(), Misclassify(classifier, task.labels), task.pixels, task.keys, threat, seed=0)
    assert outcome.broken.tolist() == (exact <= 0).tolist()


@pytest.mark.parametrize("margin", [10.0, 30.0, 45.0, 60.0, 80.0])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("threat", [ThreatModel(eps="32/255"), ThreatModel(norm="l2", eps="1/4")], ids=["linf", "l2"])
def test_confidence_does_not_hide_the_gradient(threat, momentum, margin):
    """CLIP's margins at scale 100 reach 80, where the gradient is 1e-35: no guard may outweigh it."""
    random = torch.Generator().manual_seed(0)
    slope = torch.randn(12, generator=random)
    pixels = torch.rand(1, 3, 2, 2, generator=random) / 2 + 0.25
    reach = threat.radius * (slope.abs().sum() if threat.norm == "linf" else slope.norm())
    weight = torch.stack([slope * margin / (0.9 * reach), torch.zeros(12)])  # breaks at 0.9 of the radius
    bias = torch.stack([margin - pixels.flatten() @ weight[0], torch.tensor(0.0)])
    objective = Misclassify(Affine(weight, bias), torch.tensor([0]))
    outcome = run_attack(PGD(momentum=momentum), objective, pixels, ["a"], threat, seed=0)
    assert outcome.clean.margin.item() == pytest.approx(-margin, rel=1e-4)
    assert outcome.broken.item()


def share_of_optimum(task: AffineTask, attack: PGD, threat: ThreatModel) -> Tensor:
    """How much of the largest possible fall of the margin the attack finds, for each sample."""
    objective = Misclassify(task.classifier, task.labels, loss="margin")
    found = attack.perturb(objective, task.pixels, threat, SampleRandom(0, task.keys))
    weight, shares = task.weight.double().numpy(), []
    for x, moved, label in zip(
        task.pixels.flatten(1).double().numpy(), found.flatten(1).double().numpy(), task.labels.tolist(), strict=True
    ):
        slope = weight[label] - weight[1 - label]
        shares.append(slope @ (moved - x) / (slope @ worst_delta_l2(slope, x, threat.radius)))
    return torch.tensor(shares)


def test_one_unit_step_from_the_image_is_exact_in_l2_where_the_box_is_far():
    task, threat = AffineTask(2, seed=0, inner=True), ThreatModel(norm="l2", eps="0.25")
    shares = share_of_optimum(task, PGD(steps=1, rel_step_size=1.0, start_at="zero"), threat)
    torch.testing.assert_close(shares, torch.ones_like(shares), rtol=0, atol=1e-6)


def test_random_start_comes_to_the_same_point_in_l2_where_the_box_is_far():
    task, threat = AffineTask(2, seed=0, inner=True), ThreatModel(norm="l2", eps="0.25")
    assert (share_of_optimum(task, PGD(steps=1), threat) < 0.9).all()
    shares = share_of_optimum(task, PGD(steps=100), threat)
    assert (shares >= 0.9999).all()
    assert (shares <= 1 + 1e-5).all()


@pytest.mark.parametrize("seed", range(3))
def test_l2_reaches_99_percent_of_the_optimum_where_the_box_is_active(seed):
    task, threat = AffineTask(2, seed=seed, samples=16, side=16), ThreatModel(norm="l2", eps="1.5")
    slope = (task.weight[0] - task.weight[1]).double().numpy()
    for x, label in zip(task.pixels.flatten(1).double().numpy(), task.labels.tolist(), strict=True):
        moved = x + worst_delta_l2(slope if label == 0 else -slope, x, threat.radius)
        assert (np.minimum(moved, 1 - moved)[slope != 0] < 1e-12).mean() > 0.015  # the box does cut
    shares = share_of_optimum(task, PGD(steps=100), threat)
    assert (shares >= 0.99).all()
    assert (shares <= 1 + 1e-5).all()


@pytest.mark.parametrize("threat", [ThreatModel(eps="16/256"), ThreatModel(norm="l2", eps="0.2")], ids=["linf", "l2"])
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
@pytest.mark.parametrize("classes", [3, 10])
def test_more_classes_are_never_below_the_exact_worst_margin(classes, loss, threat):
    task = AffineTask(classes, seed=5)
    objective = Misclassify(task.classifier, task.labels, loss=loss)
    outcome = run_attack(PGD(restarts=2), objective, task.pixels, task.keys, threat, seed=0)
    worst = worst_margins(task, threat)
    assert (-outcome.final.margin.numpy() >= worst - 1e-5).all()
    assert not (outcome.broken.numpy() & (worst > 1e-5)).any()
    assert outcome.broken.sum() > outcome.clean.broken.sum()
    assert (worst > 0).any()


def test_the_claimed_margin_is_that_of_the_returned_image():
    task = AffineTask(10, seed=6)
    outcome = run_attack(
        PGD(), Misclassify(task.classifier, task.labels), task.pixels, task.keys, ThreatModel(eps="16/255"), seed=0
    )
    logits = outcome.adversarial.flatten(1).double() @ task.weight.double().T + task.bias.double()
    true = logits.gather(1, task.labels[:, None])[:, 0]
    margins = logits.scatter(1, task.labels[:, None], -torch.inf).amax(1) - true
    torch.testing.assert_close(outcome.final.margin.double(), margins, rtol=0, atol=1e-5)
    assert torch.equal(outcome.broken, margins >= 0)
    assert (outcome.norm <= 16 / 255 * (1 + 1e-5)).all()


# The walk itself


class Spy(Objective):
    """A function of pixels to be maximised that notes where it was asked; breaks where `wins` says so."""

    def __init__(self, call, wins=lambda pixels: torch.zeros(len(pixels), dtype=torch.bool)) -> None:
        self.call, self.wins, self.points = call, wins, []

    def evaluate(self, pixels):
        self.points.append(pixels.detach().clone())
        return Evaluation(self.call(pixels), self.wins(pixels.detach()))

    def take(self, rows):
        return self


def wavy(pixels: Tensor) -> Tensor:
    """A value with many summits, some gradients exactly zero."""
    waves = torch.sin(40 * pixels) * torch.linspace(0.5, 2, pixels[0].numel(), dtype=pixels.dtype).view(
        pixels.shape[1:]
    )
    return (waves * (pixels > 0.2)).sum((1, 2, 3))


def slope_of(call, pixels: Tensor) -> Tensor:
    leaf = pixels.clone().requires_grad_(True)
    return torch.autograd.grad(call(leaf).sum(), leaf)[0]


def streams(count: int) -> SampleRandom:
    return SampleRandom(4, [f"key {index}" for index in range(count)], "somewhere")


def first_draw(attack: PGD, pixels: Tensor, threat: ThreatModel, restart: int = 0) -> Tensor:
    """What the attack's own stream gives, unclipped."""
    random = dataclasses.replace(streams(len(pixels)), scope=f"somewhere|{restart}")
    return threat.random_start(pixels, random, clip=False)


EIGHT = ThreatModel(eps="8/255")


def test_variant_m_is_what_the_methods_say():
    """Methods 2.0.3, in terms of the perturbation: clipped start, sign steps, clip to ball and box, last iterate."""
    pixels, attack = natural_like(5, 8).double(), TrainingPGD(steps=4, step_size="3/255")
    pixels[0, :, :2] = 0
    delta = (first_draw(attack, pixels, EIGHT) - pixels).clamp(-pixels, 1 - pixels)
    for _ in range(4):
        delta = (delta + 3 / 255 * slope_of(wavy, pixels + delta).sign()).clamp(-EIGHT.radius, EIGHT.radius)
        delta = delta.clamp(-pixels, 1 - pixels)
    spy = Spy(wavy)
    torch.testing.assert_close(attack.perturb(spy, pixels, EIGHT, streams(5)), pixels + delta, rtol=0, atol=1e-9)
    assert len(spy.points) == 4
    assert spy.points[0].min() >= 0


def test_variant_v_is_what_the_published_code_does():
    pixels, attack = natural_like(5, 8).double(), RobustVLMPGD(steps=4, step_size="3/255")
    pixels[0, :, :2] = 0
    delta = first_draw(attack, pixels, EIGHT) - pixels
    velocity = torch.zeros_like(pixels)
    for _ in range(4):
        velocity = (0.9 * velocity + slope_of(wavy, pixels + delta).sign()).sign()
        delta = (delta + 3 / 255 * velocity).clamp(-EIGHT.radius, EIGHT.radius)
        delta = (pixels + delta).clamp(0, 1) - pixels
    spy = Spy(wavy)
    torch.testing.assert_close(attack.perturb(spy, pixels, EIGHT, streams(5)), pixels + delta, rtol=0, atol=1e-9)
    assert spy.points[0].min() < 0  # D30, reproduced on purpose
    assert all(points.min() >= 0 for points in spy.points[1:])


def test_variant_v_differs_from_m_only_where_the_gradient_is_zero():
    slopes = torch.tensor([1.0, -2.0, 0.0, 0.0]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    before = torch.tensor([-1.0, -1.0, -1.0, 0.0]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    step, velocity = RobustVLMPGD().direction(before, slopes, EIGHT)
    assert step[0, 0].flatten().tolist() == [1, -1, -1, 0]
    assert torch.equal(step, velocity)
    plain, _ = TrainingPGD().direction(before, slopes, EIGHT)
    assert plain[0, 0].flatten().tolist() == [1, -1, 0, 0]


def test_variant_v_is_refused_in_l2():
    with pytest.raises(ConfigError, match="pgd_v steps along signs, which l2"):
        RobustVLMPGD().perturb(Spy(wavy), natural_like(1, 4), ThreatModel(norm="l2", eps="1"), streams(1))


def test_variant_v_starts_at_the_image_where_told_to():
    spy, pixels = Spy(wavy), natural_like(2, 4)
    RobustVLMPGD(start_at="zero", steps=1).perturb(spy, pixels, EIGHT, streams(2))
    assert torch.equal(spy.points[0], pixels)


@pytest.mark.parametrize("threat", [EIGHT, ThreatModel(norm="l2", eps="1/4")], ids=["linf", "l2"])
def test_momentum_accumulates_gradients_of_unit_mean_magnitude(threat):
    """MI-FGSM written out, in float64; the last iterate."""
    pixels = natural_like(3, 6).double()
    attack = PGD(steps=5, momentum=0.7, keep="last", start_at="zero")
    x, velocity = pixels, torch.zeros_like(pixels)
    for _ in range(5):
        slope = slope_of(wavy, x)
        velocity = 0.7 * velocity + slope / slope.abs().mean((1, 2, 3), keepdim=True)
        unit = (
            velocity.sign() if threat.norm == "linf" else velocity / velocity.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        )
        x = threat.project(x + threat.radius * (1 / 4 if threat.norm == "linf" else 1 / 5) * unit, pixels)
    torch.testing.assert_close(attack.perturb(Spy(wavy), pixels, threat, streams(3)), x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-12, 1e20])
def test_momentum_does_not_hang_on_the_size_of_the_gradient(size):
    """A confident model's gradient is tiny; its share of the velocity must not be."""
    attack, random = PGD(momentum=0.9), torch.Generator().manual_seed(0)
    before, slope = torch.randn(2, 2, 3, 4, 4, generator=random)
    _, expected = attack.direction(before, slope, EIGHT)
    _, found = attack.direction(before, size * slope, EIGHT)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_momentum_survives_a_flat_place():
    attack = PGD(momentum=0.9)
    before = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    step, velocity = attack.direction(before, torch.zeros_like(before), EIGHT)
    torch.testing.assert_close(velocity, 0.9 * before)
    assert torch.equal(step, before.sign())
    step, velocity = attack.direction(torch.zeros_like(before), torch.zeros_like(before), EIGHT)
    assert (step == 0).all()
    assert (velocity == 0).all()


def values_along(attack: PGD, pixels: Tensor, threat: ThreatModel) -> tuple[Tensor, Tensor]:
    """All points of one restart, by the attack's own steps, and the values there: `[K, B, ...]`, `[K, B]`."""
    spy = Spy(wavy)
    run = dataclasses.replace(attack, restarts=1)
    state = run.start(spy, pixels, threat, dataclasses.replace(streams(len(pixels)), scope="somewhere|0"))
    while not state.done:
        state = run.step(spy, state)
    points = torch.stack(spy.points)
    return points, torch.stack([wavy(point) for point in points])


def test_best_keeps_the_best_point_and_last_the_last():
    pixels = natural_like(6, 6)
    attack = PGD(steps=6, rel_step_size=0.9)
    points, values = values_along(attack, pixels, EIGHT)
    assert len(points) == 7
    best = values.argmax(0)
    assert len(set(best.tolist())) > 1
    assert (best < 6).any()
    found = attack.perturb(Spy(wavy), pixels, EIGHT, streams(6))
    assert torch.equal(found, points[best, torch.arange(6)])
    last = dataclasses.replace(attack, keep="last").perturb(Spy(wavy), pixels, EIGHT, streams(6))
    assert torch.equal(last, points[-1])


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_best_restart_is_returned_by_the_value_at_what_it_returns(keep):
    pixels = natural_like(12, 6)
    attack = PGD(steps=3, rel_step_size=0.9, keep=keep, restarts=4)
    results = []
    for restart in range(4):
        one = dataclasses.replace(attack, restarts=1)
        state = one.start(Spy(wavy), pixels, EIGHT, dataclasses.replace(streams(12), scope=f"somewhere|{restart}"))
        while not state.done:
            state = one.step(Spy(wavy), state)
        results.append(one.result(state))
    values = torch.stack([wavy(result) for result in results])
    winner = values.argmax(0)
    assert len(set(winner.tolist())) > 2
    found = attack.perturb(Spy(wavy), pixels, EIGHT, streams(12))
    assert torch.equal(found, torch.stack(results)[winner, torch.arange(12)])
    assert torch.equal(wavy(found), values.amax(0))


def window(pixels: Tensor) -> Tensor:
    """Logits of two classes: the value rises with brightness, and class 1 wins only between 0.52 and 0.54."""
    brightness = pixels.mean((1, 2, 3))
    inside = (brightness > 0.52) & (brightness < 0.54)
    return torch.stack([torch.zeros_like(brightness), brightness - 1 + inside], dim=1)


def test_last_counts_only_at_the_last_iterate():
    """As published protocols report it; best, our own, counts a success anywhere."""
    pixels, labels = torch.full((2, 3, 2, 2), 0.5), torch.zeros(2, dtype=torch.int64)
    pixels[1] = 0.1  # never comes near
    threat = ThreatModel(eps="0.1")
    objective, keys = Misclassify(Free(window), labels, loss="margin"), ["a", "b"]
    settings = {"steps": 8, "step_size": "1/80", "start_at": "zero"}
    best = run_attack(PGD(**settings), objective, pixels, keys, threat, seed=0)
    assert best.broken.tolist() == [True, False]
    assert best.iterations.tolist() == [3, -1]  # the image, 0.5125, 0.525
    last = run_attack(PGD(**settings, keep="last"), objective, pixels, keys, threat, seed=0)
    assert last.broken.tolist() == [False, False]
    torch.testing.assert_close(last.adversarial, pixels + 0.1)
    short = run_attack(PGD(**settings | {"steps": 2}, keep="last"), objective, pixels, keys, threat, seed=0)
    assert short.broken.tolist() == [True, False]
    assert short.iterations.tolist() == [3, -1]


def test_a_point_that_is_no_number_is_not_the_best():
    def call(pixels):
        brightness = pixels.mean((1, 2, 3))
        return torch.where(brightness < 0.505, torch.nan, brightness)

    pixels = torch.full((2, 3, 2, 2), 0.5)
    spy = Spy(call)
    attack = PGD(steps=4, step_size="1/100", start_at="zero")
    state = attack.start(spy, pixels, ThreatModel(eps="0.1"), streams(2))
    state = attack.step(spy, state)
    assert state.value.isnan().all()
    assert state.best_value.isnan().all()
    state = state.examined(pixels + 0.02, Evaluation(torch.tensor([0.7, torch.nan]), state.claimed), backward=False)
    assert state.best_value[0].item() == pytest.approx(0.7)
    assert torch.equal(state.best[0], pixels[0] + 0.02)
    assert torch.equal(state.best[1], pixels[1])


# Settings


@pytest.mark.parametrize(
    ("attack", "threat", "length"),
    [
        (PGD(), ThreatModel(eps="4/255"), 1 / 255),
        (PGD(), ThreatModel(norm="l2", eps="0.5"), 0.1),
        (PGD(rel_step_size=0.1), ThreatModel(eps="4/255"), 0.4 / 255),
        (PGD(step_size="1/255"), ThreatModel(eps="4/255"), 1 / 255),
        (PGD(step_size="2/510"), ThreatModel(eps="8/255"), 1 / 255),
        (PGD(step_size=0.01), ThreatModel(eps="4/255"), 0.01),
        (PGD(step_size="3"), ThreatModel(norm="l2", eps="9"), 3),
        (TrainingPGD(), ThreatModel(eps="4/255"), 1 / 255),
        (RobustVLMPGD(), ThreatModel(eps="4/255"), 1 / 255),
    ],
)
def test_step_length(attack, threat, length):
    assert attack.step_length(threat) == pytest.approx(length, rel=1e-7)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 0}, "0 steps, 1 restarts"),
        ({"restarts": 0}, "20 steps, 0 restarts"),
        ({"step_size": "1/255", "rel_step_size": 0.5}, "step_size is 1/255 and rel_step_size 0.5"),
        ({"step_size": "0"}, r"attack\.step_size is 0"),
        ({"step_size": "-1/255"}, r"attack\.step_size is -1/255"),
        ({"step_size": "x"}, r'attack\.step_size is "x"'),
        ({"rel_step_size": 0.0}, r"attack\.rel_step_size is 0\.0"),
        ({"rel_step_size": -0.5}, r"attack\.rel_step_size is -0\.5"),
        ({"rel_step_size": float("nan")}, r"attack\.rel_step_size is nan"),
        ({"momentum": -0.1}, r"attack\.momentum is -0\.1"),
        ({"keep": "lsat"}, r'attack\.keep is "lsat".*\n.*best, last'),
        ({"start_at": "none"}, r'attack\.start_at is "none".*\n.*zero, random'),
    ],
)
def test_settings_that_cannot_be(settings, words):
    with pytest.raises((ConfigError, ValueRangeError), match=words):
        PGD(**settings)


def test_a_step_of_4_is_told_from_4_of_255_levels():
    with pytest.raises(ValueRangeError, match=r'attack\.step_size is 4, expected.*\n.*write "4/255"'):
        PGD(step_size=4).perturb(Spy(wavy), natural_like(1, 4), EIGHT, streams(1))


def test_a_game_that_it_cannot_play_is_refused_before_it_begins():
    for attack in (PGD(), PGD(step_size="1/255"), TrainingPGD(), RobustVLMPGD()):
        attack.check(EIGHT)
    PGD(step_size=4).check(ThreatModel(norm="l2", eps="9"))
    with pytest.raises(ValueRangeError, match=r"attack\.step_size is 4"):
        PGD(step_size=4).check(EIGHT)
    with pytest.raises(ConfigError, match="pgd_v steps along signs"):
        RobustVLMPGD().check(ThreatModel(norm="l2", eps="1"))


def test_a_key_an_image_is_needed():
    with pytest.raises(ShapeError, match="2 sample keys for 3 images"):
        PGD().perturb(Spy(wavy), natural_like(3, 4), EIGHT, streams(2))


def test_only_its_own_state_is_continued():
    with pytest.raises(TypeError, match="PGD cannot continue a State"):
        PGD().step(Spy(wavy), State.fresh(torch.zeros(1, 3, 2, 2)))


def test_the_threat_model_is_not_changed_and_pixels_are_not_written_to():
    pixels = natural_like(3, 4)
    before, hash_before = pixels.clone(), EIGHT.hash
    found = PGD(steps=2, start_at="zero").perturb(Spy(wavy), pixels, EIGHT, streams(3))
    assert torch.equal(pixels, before)
    assert EIGHT.hash == hash_before
    assert not found.requires_grad
    assert EIGHT.contains(found, pixels).all()
