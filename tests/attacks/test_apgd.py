from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from ironclip.attacks.apgd import APGD, APGDState, TargetedAPGD, reviews
from ironclip.attacks.base import State
from ironclip.attacks.driver import DriverSettings, Outcome, run_attack
from ironclip.attacks.objectives import EmbeddingDistance, Evaluation, Misclassify, Objective
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError
from ironclip.randomness import SampleRandom
from made_up_classifiers import Affine, AffineTask, Free
from made_up_images import natural_like
from oracles.affine import worst_delta_l2
from oracles.apgd import checkpoints, walk
from worst_margins import worst_margins

EIGHT, L2 = ThreatModel(eps="8/255"), ThreatModel(norm="l2", eps="1/4")
games = pytest.mark.parametrize("threat", [EIGHT, L2], ids=["linf", "l2"])


def run(task: AffineTask, attack: APGD, threat: ThreatModel, **settings) -> Outcome:
    objective = Misclassify(task.classifier, task.labels, loss=attack.loss)
    settings = DriverSettings(**settings)
    return run_attack(attack, objective, task.pixels, task.keys, threat, seed=0, settings=settings)


def streams(count: int) -> SampleRandom:
    return SampleRandom(4, [f"key {index}" for index in range(count)], "somewhere|0")


# Closed forms, evaluation plan 2.14


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
@pytest.mark.parametrize("seed", range(2))
def test_two_classes_in_linf_are_the_closed_form(seed, loss):
    task, threat = AffineTask(2, seed), ThreatModel(eps="16/256")
    outcome, exact = run(task, APGD(loss=loss, steps=10), threat), worst_margins(task, threat)
    assert outcome.broken.tolist() == (exact <= 0).tolist()
    robust = ~outcome.broken.numpy()
    assert 0 < robust.sum() < (~outcome.clean.broken).sum()
    np.testing.assert_allclose(-outcome.final.margin.numpy()[robust], exact[robust], atol=1e-6)


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_two_classes_in_linf_are_at_their_worst_after_the_first_step(loss):
    task, threat = AffineTask(2, seed=0), ThreatModel(eps="16/256")
    objective, attack = Misclassify(task.classifier, task.labels, loss=loss), APGD(loss=loss)
    state = attack.start(objective, task.pixels, threat, SampleRandom(0, task.keys))
    first = attack.step(objective, state)
    second = attack.step(objective, first)
    slope = (task.weight[1 - task.labels] - task.weight[task.labels]).view_as(task.pixels)
    corner = (task.pixels + threat.radius * slope.sign()).clamp(0, 1)
    pulled = slope != 0
    assert not torch.equal(first.candidate[pulled], corner[pulled])
    assert torch.equal(second.candidate[pulled], corner[pulled])


@pytest.mark.parametrize(
    ("classes", "eps", "samples"), [(2, "16/256", 40), (3, "16/256", 40), (4, "12/256", 40), (10, "8/256", 40)]
)
def test_margins_towards_all_targets_are_the_closed_form_in_linf(classes, eps, samples):
    assert_exact(AffineTask(classes, seed=1, samples=samples), ThreatModel(eps=eps), TargetedAPGD(steps=4))


def test_margins_towards_99_targets_are_the_closed_form_in_linf():
    assert_exact(AffineTask(100, seed=2, samples=12), ThreatModel(eps="3/256"), TargetedAPGD(steps=2))


def assert_exact(task: AffineTask, threat: ThreatModel, attack: TargetedAPGD) -> None:
    attack = dataclasses.replace(attack, loss="margin", targets=999)
    outcome, exact = run(task, attack, threat), worst_margins(task, threat)
    assert outcome.broken.tolist() == (exact <= 0).tolist()
    robust = ~outcome.broken.numpy()
    assert 0 < robust.sum() < (~outcome.clean.broken).sum()
    np.testing.assert_allclose(-outcome.final.margin.numpy()[robust], exact[robust], atol=1e-6)


@pytest.mark.parametrize(("classes", "eps", "steps"), [(3, "0.1", 100), (4, "0.1", 50), (10, "0.05", 50)])
def test_margins_towards_all_targets_are_within_a_ten_thousandth_in_l2_where_the_box_is_far(classes, eps, steps):
    assert_close_in_l2(AffineTask(classes, seed=1, samples=24, inner=True), eps, steps)


def test_margins_towards_99_targets_are_within_a_ten_thousandth_in_l2():
    assert_close_in_l2(AffineTask(100, seed=2, samples=12, inner=True), "0.05", 12)


def assert_close_in_l2(task: AffineTask, eps: str, steps: int) -> None:
    threat = ThreatModel(norm="l2", eps=eps)
    attack = TargetedAPGD(loss="margin", targets=999, steps=steps)
    outcome, exact = run(task, attack, threat), worst_margins(task, threat)
    slack = 1e-4 * threat.radius * torch.cdist(task.weight, task.weight).max().item()
    assert not (outcome.broken.numpy() & (exact > 1e-5)).any()
    assert outcome.broken.numpy()[exact < -slack].all()
    robust = ~outcome.broken.numpy()
    assert 0 < robust.sum() < (~outcome.clean.broken).sum()
    gap = -outcome.final.margin.numpy()[robust] - exact[robust]
    assert (gap >= -1e-5).all()
    assert (gap <= slack + 1e-5).all()


def share_of_optimum(task: AffineTask, threat: ThreatModel) -> Tensor:
    """How much of the largest possible fall of the margin of two classes 100 steps find, for each sample."""
    objective = Misclassify(task.classifier, task.labels, loss="margin")
    found = APGD(loss="margin").perturb(objective, task.pixels, threat, SampleRandom(0, task.keys))
    weight, shares = task.weight.double().numpy(), []
    for x, moved, label in zip(
        task.pixels.flatten(1).double().numpy(), found.flatten(1).double().numpy(), task.labels.tolist(), strict=True
    ):
        slope = weight[label] - weight[1 - label]
        shares.append(slope @ (moved - x) / (slope @ worst_delta_l2(slope, x, threat.radius)))
    return torch.tensor(shares)


@pytest.mark.parametrize(
    ("task", "eps", "least"),
    [
        (AffineTask(2, seed=0, samples=16, inner=True), "0.25", 0.9999),
        (AffineTask(2, seed=1, samples=8, side=16), "1.5", 0.99),
    ],
    ids=["box far", "box active"],
)
def test_two_classes_in_l2_come_close_to_the_optimum(task, eps, least):
    shares = share_of_optimum(task, ThreatModel(norm="l2", eps=eps))
    assert (shares >= least).all()
    assert (shares <= 1 + 1e-5).all()


@pytest.mark.parametrize("threat", [ThreatModel(eps="12/256"), ThreatModel(norm="l2", eps="0.2")], ids=["linf", "l2"])
@pytest.mark.parametrize(
    "attack",
    [APGD(steps=12), APGD(steps=12, loss="dlr"), APGD(steps=12, loss="margin"), TargetedAPGD(steps=12, targets=3)],
    ids=["ce", "dlr", "margin", "dlr_t"],
)
@pytest.mark.parametrize("classes", [3, 4, 10])
def test_more_classes_are_never_below_the_exact_worst_margin(classes, attack, threat):
    task = AffineTask(classes, seed=5)
    outcome, worst = run(task, attack, threat), worst_margins(task, threat)
    assert (-outcome.final.margin.numpy() >= worst - 1e-5).all()
    assert not (outcome.broken.numpy() & (worst > 1e-5)).any()
    assert outcome.broken.sum() > outcome.clean.broken.sum()
    assert (worst > 0).any()
    assert not outcome.invalid.any()
    logits = outcome.adversarial.flatten(1).double() @ task.weight.double().T + task.bias.double()
    rival = logits.scatter(1, task.labels[:, None], -torch.inf).amax(1)
    margins = rival - logits.gather(1, task.labels[:, None])[:, 0]
    torch.testing.assert_close(outcome.final.margin.double(), margins, rtol=0, atol=1e-5)
    assert (outcome.norm <= threat.radius * (1 + 1e-5)).all()


# The walk


class Wavy(Objective):
    """A value with many summits; notes where it was asked."""

    def __init__(self, speed: Tensor) -> None:
        self.speed, self.points = speed, []

    def value(self, pixels: Tensor, speed: Tensor) -> Tensor:
        ramp = torch.linspace(0.5, 2, pixels[..., 0, 0].numel() // len(pixels) or 1, dtype=pixels.dtype)
        return (torch.sin(speed.view(-1, 1, 1, 1) * pixels) * ramp.view(1, -1, 1, 1)).sum((1, 2, 3))

    def evaluate(self, pixels):
        self.points.append(pixels.detach().clone())
        return Evaluation(self.value(pixels, self.speed), torch.zeros(len(pixels), dtype=torch.bool))

    def take(self, rows):
        return Wavy(self.speed[rows])


@games
def test_every_point_is_that_of_the_plan_for_each_sample_by_itself(threat):
    """Samples of waves so different that their steps are halved at different reviews."""
    pixels, steps = natural_like(5, 6).double(), 40
    objective = Wavy(torch.tensor([1.0, 10.0, 30.0, 60.0, 100.0], dtype=torch.float64))
    attack = APGD(steps=steps)
    state = attack.start(objective, pixels, threat, streams(5))
    etas = []
    while not state.done:
        state = attack.step(objective, state)
        etas.append(state.step_size)
    assert len(objective.points) == steps + 1
    windows = list(reviews(steps).values())
    for row in range(5):
        speed = objective.speed[row : row + 1]
        points, expected = walk(
            lambda x, speed=speed: objective.value(x[None], speed)[0],
            pixels[row],
            objective.points[0][row],
            threat.radius,
            threat.norm,
            steps=steps,
            windows=windows,
        )
        found = torch.stack([batch[row] for batch in objective.points])
        torch.testing.assert_close(found, torch.stack(points), rtol=0, atol=1e-7)
        assert [eta[row].item() for eta in etas[:-1]] == pytest.approx(expected)
    assert len(set(etas[-1].tolist())) > 2  # each its own


def test_reviews_are_those_of_the_paper():
    assert list(reviews(100)) == checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(reviews(100).values()) == [22, 19, 16, 13, 10, 7, 6, 6]
    assert list(reviews(10)) == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert reviews(1) == {1: 1}


@games
def test_starts_have_an_entry_at_the_edge_of_the_ball_and_belong_to_their_key(threat):
    pixels = torch.full((3, 3, 4, 4), 0.5)
    begin = APGD().start(Wavy(torch.ones(3)), pixels, threat, streams(3)).x
    torch.testing.assert_close(threat.distance(begin, pixels), torch.full((3,), threat.radius).double())
    other = APGD().start(Wavy(torch.ones(1)), pixels[:1], threat, streams(3).take([1])).x
    assert torch.equal(other[0], begin[1])
    assert not torch.equal(begin[0], begin[1])


@games
def test_restarts_and_targets_have_starts_of_their_own(threat):
    task, seen = AffineTask(4, seed=0, samples=16), []
    attack = TargetedAPGD(steps=1, restarts=2)

    def call(pixels):
        seen.append(pixels.detach())
        return task.classifier.logits(pixels)

    objective = Misclassify(Free(call), task.labels, loss="dlr")
    attack.perturb(objective, task.pixels, threat, streams(16))
    starts = [seen[1 + 2 * run + 7 * restart] for restart in range(2) for run in range(3)]
    assert len(seen) == 14
    assert all(not torch.equal(one, other) for i, one in enumerate(starts) for other in starts[:i])


def test_the_driver_sees_the_same_whatever_the_tile_order_and_company():
    task, threat = AffineTask(4, seed=3), ThreatModel(norm="l2", eps="0.15")
    attack = TargetedAPGD(steps=8, targets=2, restarts=2)
    whole = run(task, attack, threat)
    assert whole.clean.broken.sum() < whole.broken.sum() < 40
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    objective = Misclassify(task.classifier, task.labels[order], loss="dlr")
    keys = [task.keys[row] for row in order]
    others = {
        "tile": (run(task, attack, threat, tile=16), torch.arange(40)),
        "company": (run(task, attack, threat, compact=False), torch.arange(40)),
        "order": (run_attack(attack, objective, task.pixels[order], keys, threat, seed=0), order),
    }
    for name, (outcome, rows) in others.items():
        for column in ("adversarial", "broken", "iterations", "restart", "forwards", "backwards", "best_loss"):
            assert torch.equal(getattr(outcome, column), getattr(whole, column)[rows]), (name, column)


# Targets


@pytest.mark.parametrize(("classes", "targets", "runs"), [(2, 9, 1), (3, 9, 2), (4, 9, 3), (10, 9, 9), (10, 2, 2)])
def test_there_is_a_run_for_each_class_but_the_label_and_passes_are_those_of_the_plan(classes, targets, runs):
    task, threat = AffineTask(classes, seed=0, samples=8), ThreatModel(eps="1/65536")
    outcome = run(task, TargetedAPGD(steps=3, targets=targets), threat)
    robust = ~outcome.broken
    assert robust.any()
    assert (outcome.forwards[robust] == 1 + 1 + 4 * runs + 1).all()  # the image, the ranking, the runs, the verdict
    assert (outcome.backwards[robust] == 3 * runs).all()


def test_targets_come_by_their_logits_on_the_clean_image_and_twins_of_the_label_last():
    logits = torch.tensor([[5.0, 1.0, 4.0, 4.0, 2.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    objective = Misclassify(Free(lambda pixels: logits), torch.tensor([0, 1]))
    evaluation = objective.evaluate(torch.zeros(2, 3, 1, 1))
    assert objective.rivals(evaluation, 9).tolist() == [[2, 3, 4, 1], [4, 3, 2, 0]]
    assert objective.rivals(evaluation, 2).tolist() == [[2, 3], [4, 3]]
    named = dataclasses.replace(objective, groups=torch.tensor([0, 1, 0, 3, 1]))
    assert named.rivals(evaluation, 9).tolist() == [[3, 4, 1, 2], [3, 2, 0, 4]]


def test_any_wrong_answer_is_a_success():
    """The way to class 1, which is nearer on the image, leads through class 2."""
    weight = torch.tensor([[0.0, 0, 0], [1.0, 0, 0], [3.0, 0, 0]])
    bias = torch.tensor([0.0, -0.7, -1.75])
    pixels, labels = torch.full((1, 3, 1, 1), 0.5), torch.tensor([0])
    objective = Misclassify(Affine(weight, bias), labels, loss="margin")
    assert objective.rivals(objective.evaluate(pixels), 1).tolist() == [[1]]
    attack = TargetedAPGD(steps=3, targets=1, loss="margin")
    outcome = run_attack(attack, objective, pixels, ["a"], ThreatModel(eps="0.1"), seed=0)
    assert outcome.broken.item()
    assert outcome.final.logits.argmax().item() == 2


def test_losses_for_few_classes_are_named():
    assert [APGD(loss="dlr").loss_used(classes) for classes in (2, 3, 4)] == ["margin", "dlr", "dlr"]
    assert [TargetedAPGD().loss_used(classes) for classes in (2, 3, 4)] == ["margin_t", "margin_t", "dlr_t"]
    assert TargetedAPGD(loss="ce").loss_used(2) == "ce_t"


# Models that do not behave


@games
def test_without_a_slope_it_stays_where_it_began_and_without_numbers_too(threat):
    def call(pixels):
        brightness = pixels.mean((1, 2, 3))
        level = torch.where(brightness > 0.75, torch.nan, 0 * brightness)
        return torch.stack([level + 1, level, level - 1], dim=1)

    pixels = natural_like(4, 4) / 2
    pixels[1] = 0.9
    objective = Misclassify(Free(call), torch.zeros(4, dtype=torch.int64), loss="margin")
    for attack in (APGD(steps=6, loss="margin"), TargetedAPGD(steps=6)):
        found = attack.perturb(objective, pixels, threat, streams(4))
        assert found.isfinite().all()
        assert threat.contains(found, pixels).all()
        outcome = run_attack(attack, objective, pixels, list("abcd"), threat, seed=0)
        assert outcome.broken.tolist() == [False, True, False, False]  # no number is no answer
        assert not outcome.invalid.any()


def test_a_row_without_numbers_on_its_way_does_not_disturb_the_others():
    task, threat = AffineTask(3, seed=0, samples=16), ThreatModel(eps="8/256")

    def call(pixels):
        logits = task.classifier.logits(pixels)
        broken = (torch.arange(len(pixels)) == 5)[:, None] & (pixels != task.pixels).flatten(1).any(1)[:, None]
        return torch.where(broken, torch.nan, logits)

    for attack in (APGD(steps=8, loss="margin"), TargetedAPGD(steps=4)):
        results = [
            attack.perturb(Misclassify(model, task.labels, loss="margin"), task.pixels, threat, streams(16))
            for model in (Free(call), task.classifier)
        ]
        others = torch.arange(16) != 5
        assert torch.equal(results[0][others], results[1][others])
        assert results[0][5].isfinite().all()


# Expectation over transformation


class Restless(Objective):
    """Linear, but with another slope at each look; wins at every third."""

    def __init__(self, slopes: Tensor) -> None:
        self.slopes, self.looks = slopes, 0

    def evaluate(self, pixels):
        slope = self.slopes[self.looks % len(self.slopes)]
        self.looks += 1
        won = torch.full((len(pixels),), self.looks % 3 == 1)
        return Evaluation((slope * pixels).sum((1, 2, 3)), won)

    def take(self, rows):
        return self


def test_a_gradient_is_the_mean_of_as_many_draws_as_told():
    slopes = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pixels, attack = torch.full((2, 3, 4, 4), 0.5), APGD(steps=2, eot=3)
    objective = Restless(slopes)
    state = attack.step(objective, attack.start(objective, pixels, EIGHT, streams(2)))
    assert torch.equal(state.x, (pixels + EIGHT.radius * slopes.mean(0).sign()).clamp(0, 1))
    torch.testing.assert_close(state.value, (slopes.mean(0) * state.candidate).sum((1, 2, 3)))
    assert not state.claimed.any()  # one of three
    while not state.done:
        state = attack.step(objective, state)
    assert objective.looks == 9
    assert state.forwards.tolist() == [9, 9]
    assert state.backwards.tolist() == [6, 6]
    single = APGD(steps=2).step(Restless(slopes), APGD().start(objective, pixels, EIGHT, streams(2)))
    assert single.claimed.all()


# Settings


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (APGD, {"steps": 0}, r"0 steps, 1 restarts, 1 draws"),
        (APGD, {"restarts": 0}, "0 restarts"),
        (APGD, {"eot": 0}, r"0 draws \(eot\)"),
        (APGD, {"loss": "dlr_t"}, r'attack\.loss is "dlr_t".*\n.*ce, margin, dlr'),
        (TargetedAPGD, {"targets": 0}, r"attack\.targets is 0"),
        (TargetedAPGD, {"steps": 0}, "0 steps"),
    ],
)
def test_settings_that_cannot_be(kind, settings, words):
    with pytest.raises(ConfigError, match=words):
        kind(**settings)


def test_a_game_with_a_target_is_refused_by_the_attack_that_chooses_targets():
    threat = ThreatModel(goal="targeted")
    APGD().check(threat)
    with pytest.raises(ConfigError, match=r"apgd_t chooses its own targets.*\n.*Use apgd"):
        TargetedAPGD().check(threat)


def test_an_objective_without_classes_is_refused_by_the_attack_that_chooses_targets():
    class Model:
        def embed_image(self, pixels):
            return pixels.flatten(1)

    objective = EmbeddingDistance(Model(), torch.zeros(2, 48))
    pixels = natural_like(2, 4)
    assert APGD(steps=2).perturb(objective, pixels, EIGHT, streams(2)).shape == pixels.shape
    with pytest.raises(ConfigError, match=r"EmbeddingDistance has no classes to aim at.*\n.*apgd"):
        TargetedAPGD(steps=2).perturb(objective, pixels, EIGHT, streams(2))
    with pytest.raises(ConfigError, match="has no classes to aim at"):
        objective.aim(objective.evaluate(pixels), torch.zeros(2, dtype=torch.int64), "margin_t")


def test_only_its_own_state_is_continued():
    pixels = torch.zeros(1, 3, 2, 2)
    with pytest.raises(TypeError, match="APGD cannot continue a State"):
        APGD().step(Wavy(torch.ones(1)), State.fresh(pixels))
    state = APGD().start(Wavy(torch.ones(1)), pixels, EIGHT, streams(1))
    assert isinstance(state, APGDState)
    with pytest.raises(TypeError, match="apgd_t cannot continue a state without targets"):
        TargetedAPGD().step(Wavy(torch.ones(1)), state)
