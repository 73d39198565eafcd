from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from ironclip.attacks.base import State
from ironclip.attacks.driver import Outcome, run_attack
from ironclip.attacks.fab import FAB, TargetedFAB, shortest_move
from ironclip.attacks.objectives import EmbeddingDistance, Misclassify
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError
from ironclip.randomness import SampleRandom
from made_up_classifiers import Affine, AffineTask, Free
from made_up_images import natural_like
from oracles import nearest
from worst_margins import worst_margins

LINF, L2 = ThreatModel(eps="8/256"), ThreatModel(norm="l2", eps="0.15")
games = pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])


both = pytest.mark.parametrize("attack", [TargetedFAB(steps=3, targets=99), FAB(steps=3)], ids=["fab_t", "fab"])


def run(task: AffineTask, attack: TargetedFAB | FAB, threat: ThreatModel) -> Outcome:
    objective = Misclassify(task.classifier, task.labels, loss=attack.loss)
    return run_attack(attack, objective, task.pixels, task.keys, threat, seed=0)


def streams(count: int) -> SampleRandom:
    return SampleRandom(4, [f"key {index}" for index in range(count)], "somewhere")


def break_radii(task: AffineTask, norm: str) -> np.ndarray:
    weight, bias = task.weight.double().numpy(), task.bias.double().numpy()
    pixels = task.pixels.flatten(1).double().numpy()
    return np.array(
        [nearest.break_radius(weight, bias, x, y, norm) for x, y in zip(pixels, task.labels.tolist(), strict=True)]
    )


# Projection onto a plane within the box


def planes(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Points, slopes and rises of 12 planes, float64."""
    random = torch.Generator().manual_seed(0)
    shape = (12, 3, 6, 6)
    pixels = torch.rand(shape, generator=random).double()
    slopes = torch.randn(shape, generator=random).double()
    rises = torch.linspace(-2, 2, 12).double()
    if kind == "some slopes are zero":
        slopes[:, :, ::2] = 0
    if kind == "points on faces of the box":
        pixels = (3 * pixels - 1).clamp(0, 1)
        rises *= 10
    if kind == "slopes of all sizes":
        slopes = slopes.sign() * 10 ** (12 * torch.rand(shape, generator=random).double() - 6)
        rises *= 1e5
    if kind == "planes beyond the box":
        rises *= 1e4
    if kind == "slopes of 1e-30":
        slopes, rises = slopes * 1e-30, rises * 1e-30
    return pixels, slopes, rises


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    "kind",
    [
        "anything",
        "some slopes are zero",
        "points on faces of the box",
        "slopes of all sizes",
        "planes beyond the box",
        "slopes of 1e-30",
    ],
)
def test_the_shortest_move_is_that_found_by_bisection(kind, norm):
    pixels, slopes, rises = planes(kind)
    found = shortest_move(pixels, slopes, rises, norm)
    for row in range(len(pixels)):
        x, slope = pixels[row].flatten().numpy(), slopes[row].flatten().numpy()
        expected = nearest.shortest_move(x, slope, rises[row].item(), norm)
        np.testing.assert_allclose(found[row].flatten().numpy(), expected, rtol=0, atol=1e-9)
    assert ((pixels + found).clamp(0, 1) - (pixels + found)).abs().max() <= 1e-15
    if kind == "planes beyond the box":
        corner = torch.where(slopes * rises.view(-1, 1, 1, 1) > 0, 1 - pixels, -pixels)
        torch.testing.assert_close(found, corner)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_nothing_to_climb_and_nothing_to_gain_move_nothing(norm):
    pixels, slopes, rises = planes("anything")
    assert (shortest_move(pixels, 0 * slopes, rises, norm) == 0).all()
    assert (shortest_move(pixels, slopes, 0 * rises, norm) == 0).all()
    assert shortest_move(pixels[:0], slopes[:0], rises[:0], norm).shape == (0, 3, 6, 6)


# Closed forms, evaluation plan 2.14


@games
@both
@pytest.mark.parametrize("classes", [2, 3, 4, 10])
@pytest.mark.parametrize("inner", [False, True], ids=["box active", "box far"])
def test_radii_are_close_to_the_truth(classes, inner, attack, threat):
    task = AffineTask(classes, seed=1, samples=24, inner=inner)
    exact = break_radii(task, threat.norm)
    objective = Misclassify(task.classifier, task.labels)
    found = attack.radii(objective, task.pixels, threat, streams(24)).numpy()
    wrong = objective.evaluate(task.pixels).broken.numpy()
    assert (found[wrong] == 0).all()
    assert wrong.any()
    reachable = np.isfinite(exact)
    assert (found[reachable] >= exact[reachable] - 1e-6).all()
    # FAB takes the boundary that would be the nearest one if there were no box.
    most = 1.05 if isinstance(attack, FAB) and not inner else 1.006
    assert (found[reachable] <= most * exact[reachable] + 1e-6).all()
    assert np.isinf(found[~reachable]).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_of_200_planes_the_first_step_leads_five_hundredths_beyond_and_the_search_brings_it_back(norm):
    """As in the plan: 300 pixels anywhere in the box, which cuts some of the moves."""
    random = torch.Generator().manual_seed(0)
    weight = torch.stack([torch.randn(300, generator=random), torch.zeros(300)])
    pixels, slope = torch.rand(200, 3, 10, 10, generator=random), weight[0].double().numpy()
    # Every image has a bias of its own, so that it stands as high above the plane as told.
    heights = torch.linspace(0.5, 6, 200)
    shift = pixels.flatten(1) @ weight[0] - heights
    exact, cut = [], []
    for x, height in zip(pixels.flatten(1).double().numpy(), heights.tolist(), strict=True):
        move = nearest.shortest_move(x, slope, -height, norm)
        exact.append(np.abs(move).max() if norm == "linf" else np.linalg.norm(move))
        cut.append((np.minimum(x + move, 1 - x - move) < 1e-12).mean())
    assert np.mean(cut) > 0.005

    def call(x):
        lead = x.flatten(1) @ weight[0] - shift
        return torch.stack([lead, torch.zeros_like(lead)], dim=1)

    objective = Misclassify(Free(call), torch.zeros(200, dtype=torch.int64))
    threat = ThreatModel(norm=norm, eps="1/255")
    exact = np.array(exact)
    attack = TargetedFAB(steps=1)
    state = attack.step(objective, attack.start(objective, pixels, threat, streams(200)))
    assert (state.radius.numpy() <= 1.05 * exact + 1e-5).all()
    assert state.radius.numpy().max() > 1.01 * exact.max()
    for steps in (1, 2, 4):
        found = TargetedFAB(steps=steps).radii(objective, pixels, threat, streams(200)).numpy()
        assert (found >= (1 - 1e-4) * exact).all()
        assert (found <= 1.006 * exact).all()


@pytest.mark.parametrize(
    ("classes", "threat"),
    [(2, ThreatModel(eps="16/256")), (3, LINF), (10, LINF), (4, L2), (10, L2)],
)
def test_verdicts_are_the_closed_form_but_for_a_hair(classes, threat):
    task = AffineTask(classes, seed=1, samples=24)
    outcome = run(task, TargetedFAB(steps=2, targets=99), threat)
    broken, worst = outcome.broken.numpy(), worst_margins(task, threat)
    assert not (broken & (worst > 1e-5)).any()
    near = dataclasses.replace(threat, eps=threat.radius / 1.0065)
    assert broken[worst_margins(task, near) <= 0].all()
    assert outcome.clean.broken.sum() < outcome.broken.sum() < 24
    assert (-outcome.final.margin.numpy() >= worst - 1e-5).all()
    assert (outcome.norm <= threat.radius * (1 + 1e-5) + 1e-7).all()
    assert not outcome.invalid.any()
    assert (outcome.false_claims == 0).all()


@games
def test_what_survives_is_returned_at_the_edge_of_the_ball_and_raised(threat):
    task = AffineTask(3, seed=0)
    small = dataclasses.replace(threat, eps=threat.radius / 4)
    outcome = run(task, TargetedFAB(steps=3), small)
    robust = ~outcome.broken
    assert robust.sum() > 10
    assert (outcome.final.margin > outcome.clean.margin)[robust].all()
    torch.testing.assert_close(outcome.norm[robust], torch.full_like(outcome.norm[robust], small.radius))


# The search


def test_passes_are_two_forwards_and_a_gradient_a_step():
    task, threat = AffineTask(3, seed=0, samples=8), ThreatModel(eps="1/65536")
    outcome = run(task, TargetedFAB(steps=4), threat)
    robust = ~outcome.broken
    assert robust.any()
    # The image, the ranking, two runs, the final search, the look at the end, the verdict.
    assert (outcome.forwards[robust] == 1 + 1 + 2 * 4 * 2 + 3 + 1 + 1).all()
    assert (outcome.backwards[robust] == 2 * 4).all()


def test_the_nearest_of_all_boundaries_costs_a_gradient_a_wrong_class():
    task, threat = AffineTask(4, seed=0, samples=8), ThreatModel(eps="1/65536")
    outcome = run(task, FAB(steps=5), threat)
    robust = ~outcome.broken
    assert robust.any()
    assert (outcome.forwards[robust] == 1 + 1 + 5 * 2 + 3 + 1 + 1).all()
    assert (outcome.backwards[robust] == 5 * 3).all()


@games
def test_of_several_boundaries_the_nearest_is_crossed_and_not_that_of_the_best_rival(threat):
    """Class 1 comes second on the image, class 2 is the nearer one: its logit is twenty times as steep."""
    weight = torch.tensor([[0.0, 0, 0], [0.1, 0.0, 0.0], [0.0, 2.0, 0.0]])
    classifier = Affine(weight, torch.tensor([1.0, 0.9, -0.4]))
    objective = Misclassify(classifier, torch.tensor([0]))
    pixels = torch.full((1, 3, 1, 1), 0.5)
    assert classifier.logits(pixels)[0].argsort(descending=True).tolist() == [0, 1, 2]
    attack = FAB(steps=1)
    state = attack.step(objective, attack.start(objective, pixels, threat, streams(1)))
    assert classifier.logits(state.nearest)[0].argmax() == 2
    assert state.radius.item() == pytest.approx(1.05 * 0.2, rel=1e-5)
    radius = attack.radii(objective, pixels, threat, streams(1)).item()
    assert 0.2 <= radius <= 1.006 * 0.2


def test_the_final_search_follows_a_boundary_that_is_bent():
    """The lead of class 1 grows with the square of the brightness: secants come near its zero in three looks."""

    def call(pixels):
        lead = 30 * (pixels.mean((1, 2, 3)) - 0.5).clamp(min=0) ** 2 - 0.1
        return torch.stack([torch.zeros_like(lead), lead], dim=1)

    pixels, truth = torch.full((1, 3, 2, 2), 0.5), (0.1 / 30) ** 0.5
    objective = Misclassify(Free(call), torch.tensor([0]))
    attack = TargetedFAB(steps=1)
    state = attack.start(objective, pixels, LINF, streams(1))
    state = attack.step(objective, dataclasses.replace(state, x=torch.full_like(pixels, 0.52)))
    first = state.radius.item()
    while not state.done:
        state = attack.step(objective, state)
    assert first > 1.3 * truth
    assert truth <= state.radius.item() < truth + 0.5 * (first - truth)


def test_a_break_is_counted_where_only_the_slope_was_asked_for():
    """Class 1 wins from brightness 0.55 on; its logit climbs so late that the plane is found too far out."""

    def call(pixels):
        brightness = pixels.mean((1, 2, 3))
        lead = torch.where(brightness < 0.55, -0.1, 10 * (brightness - 0.55)) + 0.1 * (brightness - 0.5)
        return torch.stack([torch.zeros_like(lead), lead], dim=1)

    pixels, asked = torch.full((1, 3, 2, 2), 0.5), []
    objective = Misclassify(Free(lambda x: asked.append(x.detach()) or call(x)), torch.tensor([0]))
    attack = TargetedFAB(steps=1)
    state = attack.start(objective, pixels, LINF, streams(1))
    state = dataclasses.replace(state, x=torch.full_like(pixels, 0.6))  # as 0.9 of the way to a break might be
    state = attack.step(objective, state)
    assert len(asked) == 3
    assert call(asked[1])[0].argmax() == 1
    assert state.radius.item() <= 0.1 + 1e-6


def test_a_break_is_left_for_nine_tenths_of_the_way_to_it():
    task = AffineTask(2, seed=0, samples=8, inner=True)
    objective, attack = Misclassify(task.classifier, task.labels), TargetedFAB(steps=9)
    before = attack.start(objective, task.pixels, LINF, streams(8))
    after = attack.step(objective, before)
    right = (before.radius > 0) & after.radius.isfinite()
    expected = task.pixels + 0.9 * (after.nearest - task.pixels)
    assert right.any()
    torch.testing.assert_close(after.x[right], expected[right])


@games
def test_restarts_begin_half_a_radius_away_but_for_the_first(threat):
    task = AffineTask(3, seed=0, samples=16)
    objective, attack = Misclassify(task.classifier, task.labels), TargetedFAB(steps=1, restarts=2)
    pixels = torch.full_like(task.pixels, 0.5)
    assert attack.for_restart(0) == attack
    assert torch.equal(attack.start(objective, pixels, threat, streams(16)).x, pixels)
    later = attack.for_restart(1)
    state = later.start(objective, pixels, threat, streams(16))
    right = state.radius > 0
    away = threat.distance(state.x, pixels)
    torch.testing.assert_close(away[right], torch.full_like(away[right], threat.radius / 2))
    assert (away[~right] == 0).all()
    other = later.step(objective, state)
    assert other.run == 1
    assert not torch.equal(other.x[right], state.x[right])


@games
@pytest.mark.parametrize(
    "attack", [TargetedFAB(steps=4, targets=2, restarts=2), FAB(steps=4, restarts=2)], ids=["fab_t", "fab"]
)
def test_the_driver_sees_the_same_whatever_the_order(attack, threat):
    task = AffineTask(4, seed=3)
    whole = run(task, attack, threat)
    assert whole.clean.broken.sum() < whole.broken.sum() < 40
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    objective = Misclassify(task.classifier, task.labels[order], loss="margin")
    keys = [task.keys[row] for row in order]
    outcome = run_attack(attack, objective, task.pixels[order], keys, threat, seed=0)
    for column in ("adversarial", "broken", "iterations", "restart", "forwards", "backwards", "best_loss"):
        assert torch.equal(getattr(outcome, column), getattr(whole, column)[order]), column


# Models that do not behave


@games
@both
def test_flat_and_senseless_models_leave_numbers(attack, threat):
    def call(pixels):
        brightness = pixels.mean((1, 2, 3))
        level = torch.where(brightness > 0.75, torch.nan, 0 * brightness)
        return torch.stack([level + 1, level, level - 1], dim=1)

    pixels = natural_like(4, 4) / 2
    pixels[1] = 0.9
    objective = Misclassify(Free(call), torch.zeros(4, dtype=torch.int64), loss="margin")
    outcome = run_attack(attack, objective, pixels, list("abcd"), threat, seed=0)
    assert outcome.broken.tolist() == [False, True, False, False]
    assert torch.equal(outcome.adversarial, pixels)
    assert not outcome.invalid.any()
    assert attack.radii(objective, pixels, threat, streams(4)).tolist() == [torch.inf, 0, torch.inf, torch.inf]


def test_a_row_without_numbers_on_its_way_does_not_disturb_the_others():
    task = AffineTask(3, seed=0, samples=16)

    def call(pixels):
        moved = (pixels != task.pixels).flatten(1).any(1) & (torch.arange(len(pixels)) == 5)
        return torch.where(moved[:, None], torch.nan, task.classifier.logits(pixels))

    attack = TargetedFAB(steps=3)
    results = [
        attack.perturb(Misclassify(model, task.labels, loss="margin"), task.pixels, LINF, streams(16))
        for model in (Free(call), task.classifier)
    ]
    others = torch.arange(16) != 5
    assert torch.equal(results[0][others], results[1][others])
    assert results[0][5].isfinite().all()


def test_a_steep_model_is_no_steeper_than_its_boundary():
    """Slopes of 1e30, whose squares overflow float32, lead to the same plane."""
    radii = []
    for scale in (1.0, 1e30):
        weight = torch.tensor([[1.0, -2, 0.5], [0.0, 0, 0]]) * scale
        objective = Misclassify(Affine(weight, torch.tensor([0.5, 0.0]) * scale), torch.tensor([0]))
        radii.append(TargetedFAB(steps=3).radii(objective, torch.full((1, 3, 1, 1), 0.5), L2, streams(1)).item())
    assert radii[0] == pytest.approx(radii[1], rel=1e-6)
    assert 0 < radii[0] < 1


# Settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 0}, "0 steps, 1 restarts"),
        ({"restarts": 0}, "0 restarts"),
        ({"targets": 0}, "0 targets"),
        ({"start_at": "edge"}, r'attack\.start_at is "edge".*\n.*zero, random'),
    ],
)
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(ConfigError, match=words):
        TargetedFAB(**settings)
    if "targets" not in settings:
        with pytest.raises(ConfigError, match=words):
            FAB(**settings)


def test_games_and_objectives_that_it_cannot_play():
    with pytest.raises(ConfigError, match=r"fab_t chooses its own targets.*\n.*Use apgd"):
        TargetedFAB().check(ThreatModel(goal="targeted"))
    with pytest.raises(ConfigError, match="fab chooses its own targets"):
        FAB().check(ThreatModel(goal="targeted"))
    detached = Misclassify(Free(lambda x: x.detach().flatten(1)), torch.tensor([0, 0]))
    with pytest.raises(ConfigError, match=r"no gradient with respect to the pixels.*\n.*without gradients"):
        FAB().perturb(detached, natural_like(2, 4), LINF, streams(2))

    class Model:
        def embed_image(self, pixels):
            return pixels.flatten(1)

    with pytest.raises(ConfigError, match="EmbeddingDistance has no classes to aim at"):
        TargetedFAB().perturb(EmbeddingDistance(Model(), torch.zeros(2, 48)), natural_like(2, 4), LINF, streams(2))
    with pytest.raises(TypeError, match="FAB cannot continue a State"):
        TargetedFAB().step(EmbeddingDistance(Model(), torch.zeros(1, 12)), State.fresh(torch.zeros(1, 3, 2, 2)))


def test_its_loss_is_named():
    assert TargetedFAB().loss_used(2) == TargetedFAB(loss="ce").loss_used(1000) == "margin_t"
