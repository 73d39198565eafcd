"""Square: its geometry by independent slow versions, its search against closed forms, and whose draws it uses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ironclip.attacks.base import ATTACKS
from ironclip.attacks.driver import run_attack
from ironclip.attacks.objectives import Evaluation, Misclassify, Objective
from ironclip.attacks.pgd import PGD
from ironclip.attacks.square import BLOCK, Square, SquareState, _bumps, _Window
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError
from ironclip.randomness import SampleRandom
from made_up_classifiers import AffineTask, Free
from worst_margins import worst_margins

LINF, L2 = ThreatModel(eps="16/256"), ThreatModel(norm="l2", eps="0.5")
both = pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])


class Recorder(Objective):
    """A value a pixel pattern decides, and every point at which it was asked; never broken."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.points: list[Tensor] = []
        self.slope = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def evaluate(self, pixels: Tensor) -> Evaluation:
        self.points.append(pixels.clone())
        value = (pixels.double() * self.slope).sum((1, 2, 3))
        return Evaluation(value, torch.zeros(len(pixels), dtype=torch.bool))

    def take(self, rows: Tensor) -> Objective:
        return self


def walk(attack: Square, threat: ThreatModel, shape=(9, 13), samples=3, seed=0) -> tuple[Recorder, Tensor]:
    """Let it search, and return what was asked and the clean images; the middle of the box is at a distance."""
    pixels = 0.3 + 0.4 * torch.rand(samples, 3, *shape, generator=torch.Generator().manual_seed(seed))
    objective = Recorder(shape)
    attack.perturb(objective, pixels, threat, SampleRandom(0, [f"key {row}" for row in range(samples)]))
    return objective, pixels


def accepted(objective: Recorder) -> list[Tensor]:
    """For each point but the first, where the search stood when it asked: the best so far, row by row."""
    best, stood = objective.points[0], []
    for point in objective.points[1:]:
        stood.append(best)
        better = (point.double() * objective.slope).sum((1, 2, 3)) > (best.double() * objective.slope).sum((1, 2, 3))
        best = torch.where(better[:, None, None, None], point, best)
    return stood


# Against closed forms, evaluation plan 2.14


@pytest.mark.parametrize("threat", [ThreatModel(eps="8/256"), ThreatModel(norm="l2", eps="0.25")], ids=["linf", "l2"])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_it_is_never_below_the_exact_worst_margin_and_comes_near_it(classes, threat):
    task = AffineTask(classes, seed=5, samples=20)
    exact = worst_margins(task, threat)
    objective = Misclassify(task.classifier, task.labels, loss="margin")
    outcome = run_attack(Square(queries=400), objective, task.pixels, task.keys, threat, seed=0)
    margins = -outcome.final.margin.numpy()
    assert (margins >= exact - 1e-5).all()
    assert not (outcome.broken.numpy() & (exact > 1e-5)).any()
    assert outcome.broken.sum() > outcome.clean.broken.sum() + 2
    assert threat.contains(outcome.adversarial, task.pixels).all()
    standing = ~outcome.broken.numpy()
    gaps = (margins - exact)[standing] / (-outcome.clean.margin.numpy() - exact)[standing]
    print(f"Square-400, C = {classes}, {threat.norm}: gap to the closed form {100 * gaps.mean():.1f} % of the fall")
    # Windows of 3 x 3 cannot follow a slope that changes from pixel to pixel, squares of one pixel can.
    assert gaps.mean() < {"linf": 0.15, "l2": 0.6}[threat.norm]


def test_it_breaks_a_model_whose_gradient_is_flat():
    task = AffineTask(3, seed=0, samples=20)
    stairs = Free(lambda pixels: (task.classifier.logits(pixels) * 8).round() / 8 + torch.tensor([0.01, 0.0, -0.01]))
    labels = stairs.logits(task.pixels).argmax(1)

    def broken(attack) -> int:
        objective = Misclassify(stairs, labels, loss=attack.loss)
        return int(run_attack(attack, objective, task.pixels, task.keys, LINF, seed=0).broken.sum())

    assert broken(PGD(start_at="zero", steps=3)) == 0
    assert broken(Square(queries=100)) > 5


# Squares, linf


def test_the_start_is_stripes_at_the_edge_of_the_ball():
    objective, pixels = walk(Square(queries=1), LINF)
    delta = objective.points[0] - pixels
    torch.testing.assert_close(delta.abs(), torch.full_like(delta, LINF.radius), rtol=0, atol=1e-6)
    assert (delta.sign() == delta.sign()[:, :, :1]).all()  # one sign a column and channel
    assert len({tuple(row.sign().flatten().tolist()) for row in delta}) == 3


@pytest.mark.parametrize("share", [0.8, 0.1, 0.001])
def test_a_step_moves_one_square_to_an_edge_of_the_ball(share):
    shape = (9, 13)
    objective, pixels = walk(Square(queries=8, initial_share=share), LINF, shape)
    side = min(max(round(math.sqrt(share * 9 * 13)), 1), 9)
    places = set()
    for stood, point in zip(accepted(objective), objective.points[1:], strict=True):
        for row in range(3):
            changed = (point[row] != stood[row]).any(dim=0)
            down, across = (torch.where(changed.any(dim=axis))[0] for axis in (1, 0))
            # A channel whose sign is the old one's everywhere does not show, so a square can look smaller.
            assert len(down) <= side
            assert len(across) <= side
            if len(down):
                assert down[-1] - down[0] < side
                places.add((down[0].item(), across[0].item()))
            delta = point[row] - pixels[row]
            torch.testing.assert_close(delta.abs(), torch.full_like(delta, LINF.radius), rtol=0, atol=1e-6)
            moved = point[row] != stood[row]
            assert all(len(delta[channel][moved[channel]].sign().unique()) <= 1 for channel in range(3))
    assert len(places) >= min(5, (9 - side + 1) * (13 - side + 1))


def test_corners_reach_the_last_row_and_column_and_no_further():
    draws = torch.tensor([[0.0, 0.0], [1 - 2**-24, 1 - 2**-24], [0.5, 0.99]])
    for height, width, side in ((7, 9, 3), (200, 224, 1), (5, 5, 5)):
        window = _Window.drawn(draws, side, height, width)
        assert (window.inside.sum((1, 2, 3)) == side * side).all()
        assert window.inside[0, 0, :side, :side].all()
        assert window.inside[1, 0, height - side :, width - side :].all()


def test_the_schedule_is_that_of_the_plan():
    attack = Square()
    halved = {0: 0, 10: 0, 11: 1, 50: 1, 51: 2, 201: 3, 501: 4, 1001: 5, 2001: 6, 4000: 6, 4001: 7, 6001: 8, 8001: 9}
    assert {iteration: math.log2(0.8 / attack.share(iteration)) for iteration in halved} == pytest.approx(halved)
    short = Square(queries=100, rescale_schedule=True)
    assert [short.share(iteration) for iteration in (0, 1, 99)] == [0.8, attack.share(100), attack.share(9900)]


# Bumps, l2


def slow_bump(side: int) -> np.ndarray:
    """Rectangles around the middle of each half, added one by one."""

    def pyramid(height: int, width: int) -> np.ndarray:
        found = np.zeros((height, width))
        for ring in range(max(height // 2, width // 2) + 1):
            for row in range(height):
                for column in range(width):
                    if abs(row - height // 2) <= ring and abs(column - width // 2) <= ring:
                        found[row, column] += 1 / (ring + 1) ** 2
        return found / np.linalg.norm(found) if found.size else found

    bump = np.concatenate([pyramid(side // 2, side), -pyramid(side - side // 2, side)])
    return bump / np.linalg.norm(bump)


@pytest.mark.parametrize("side", [1, 2, 3, 6, 11])
def test_a_bump_is_half_up_and_half_down(side):
    found = _bumps(side, torch.zeros(1, dtype=torch.float64))
    np.testing.assert_allclose(found[0].numpy(), slow_bump(side), atol=1e-12)
    assert torch.equal(found[1], found[0].T)


@pytest.mark.parametrize("shape", [(9, 13), (32, 32), (4, 4), (21, 10)])
def test_the_grid_of_bumps_covers_the_middle_and_lies_on_the_sphere(shape):
    objective, pixels = walk(Square(queries=1), L2, shape)
    delta = (objective.points[0] - pixels).double()
    torch.testing.assert_close(delta.flatten(1).norm(dim=1), torch.full((3,), 0.5).double(), rtol=1e-5, atol=0)
    side = max(min(shape) // 5, 1)
    top, left = ((length - length // side * side) // 2 for length in shape)
    tile = delta[0, 0, top : top + side, left : left + side]
    bump = torch.from_numpy(slow_bump(side))
    unit = tile / tile.norm()
    candidates = (bump, -bump, bump.T, -bump.T)
    assert min((unit - candidate).abs().max() for candidate in candidates) < 1e-4


def slow_l2_candidate(origin, best, radius, side, corner, other, signs, transposed) -> np.ndarray:
    """One step of algorithm 3 in float64 with explicit windows."""
    delta = best - origin
    first = np.zeros(delta.shape, dtype=bool)
    first[:, corner[0] : corner[0] + side, corner[1] : corner[1] + side] = True
    second = np.zeros(delta.shape, dtype=bool)
    second[:, other[0] : other[0] + side, other[1] : other[1] + side] = True
    in_windows = np.linalg.norm(delta[first | second])
    unused = max(radius**2 - np.linalg.norm(delta) ** 2, 0)
    bump = slow_bump(side).T if transposed else slow_bump(side)
    moved = np.where(second, 0, delta)
    for channel in range(3):
        old = delta[channel][first[channel]].reshape(side, side)
        new = bump * signs[channel] + old / (np.linalg.norm(old) + 1e-12)
        new = new / (np.linalg.norm(new) + 1e-12) * math.sqrt(unused / 3 + in_windows**2)
        moved[channel, corner[0] : corner[0] + side, corner[1] : corner[1] + side] = new
    return np.clip(origin + moved * radius / np.linalg.norm(moved), 0, 1)


def test_a_step_in_l2_moves_length_between_two_windows():
    height, width = 9, 13
    attack, objective = Square(queries=6), Recorder((height, width))
    pixels = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    state = attack.step(objective, attack.start(objective, pixels, L2, SampleRandom(0, ["a", "b"])))
    for iteration in range(5):
        before, state = state, attack.step(objective, state)
        side = 9  # 0.8 of 117 pixels is a side of 10, made odd, in an image of 9 rows
        for row in range(2):
            draw = before.draws[row, iteration].double().numpy()
            corner, other = (
                (int(draw[i] * (height - side + 1)), int(draw[i + 1] * (width - side + 1))) for i in (0, 2)
            )
            signs = np.where(draw[4:7] < 0.5, -1, 1)
            origin, best = pixels[row].numpy(), before.best[row].numpy()
            expected = slow_l2_candidate(origin, best, L2.radius, side, corner, other, signs, draw[7] < 0.5)
            np.testing.assert_allclose(state.candidate[row].numpy(), expected, atol=1e-6)


# What both share


@both
def test_the_budget_is_exact_and_every_point_is_legal(threat):
    for queries in (1, 2, BLOCK + 3):
        objective, pixels = walk(Square(queries=queries), threat, (5, 6))
        assert len(objective.points) == queries
        assert all(threat.contains(point, pixels).all() for point in objective.points)


@both
def test_it_keeps_what_raises_the_value_and_nothing_else(threat):
    attack, objective = Square(queries=40), Recorder((6, 6))
    pixels = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    state = attack.start(objective, pixels, threat, SampleRandom(0, list("abcd")))
    values = []
    while not state.done:
        state = attack.step(objective, state)
        values.append(state.value)
        torch.testing.assert_close(state.best_value, torch.stack(values).amax(dim=0), rtol=0, atol=0)
        torch.testing.assert_close((state.best.double() * objective.slope).sum((1, 2, 3)), state.best_value)
    assert (state.best_value > values[0]).all()
    assert (state.queries == 40).all()
    assert (state.forwards == 40).all()
    assert (state.backwards == 0).all()


@both
def test_a_sample_draws_by_its_key_and_the_seed_alone(threat):
    """Also beyond the first block of draws, alone or among others."""
    task, attack = AffineTask(3, seed=1, samples=6), Square(queries=BLOCK + 5)
    objective = Misclassify(task.classifier, task.labels, loss="margin")

    def found(rows: list[int], seed: int = 0) -> Tensor:
        index = torch.tensor(rows)
        keys = [task.keys[row] for row in rows]
        return attack.perturb(objective.take(index), task.pixels[index], threat, SampleRandom(seed, keys))

    whole = found([0, 1, 2, 3, 4, 5])
    assert torch.equal(found([0, 1, 2, 3, 4, 5]), whole)
    for row in (0, 4):
        torch.testing.assert_close(found([row])[0], whole[row], rtol=0, atol=1e-6)
    assert torch.equal(found([5, 2, 3]), whole[[5, 2, 3]])
    assert not torch.equal(found([0, 1, 2, 3, 4, 5], seed=1), whole)


@both
def test_two_images_that_are_equal_are_searched_differently_under_two_keys(threat):
    task = AffineTask(2, seed=0, samples=1)
    pixels = task.pixels.repeat(2, 1, 1, 1)
    objective = Misclassify(task.classifier, task.labels.repeat(2), loss="margin")
    found = Square(queries=3).perturb(objective, pixels, threat, SampleRandom(0, ["a", "b"]))
    assert not torch.equal(found[0], found[1])


def test_restarts_search_elsewhere_and_only_where_it_stands():
    task = AffineTask(2, seed=3, samples=24)
    objective = Misclassify(task.classifier, task.labels, loss="margin")
    once, thrice = (
        run_attack(Square(queries=5, restarts=restarts), objective, task.pixels, task.keys, LINF, seed=0)
        for restarts in (1, 3)
    )
    assert (thrice.broken >= once.broken).all()
    assert thrice.broken.sum() > once.broken.sum()
    standing = ~thrice.broken
    assert (thrice.forwards[standing] == 1 + 3 * 5 + 1).all()
    assert set(thrice.restart[thrice.broken & ~once.broken].tolist()) <= {1, 2}
    assert (thrice.backwards == 0).all()


def test_a_ball_of_one_point_stays_there():
    for norm in ("linf", "l2"):
        objective, pixels = walk(Square(queries=4), ThreatModel(norm=norm, eps="0"), (6, 6))
        assert all(torch.equal(point, pixels) for point in objective.points)


def test_it_needs_no_gradient():
    task = AffineTask(2, seed=0, samples=4)
    detached = Free(lambda pixels: task.classifier.logits(pixels).detach())
    objective = Misclassify(detached, task.labels, loss="margin")
    outcome = run_attack(Square(queries=3), objective, task.pixels, task.keys, LINF, seed=0)
    assert (outcome.backwards == 0).all()


def test_a_state_of_another_attack_is_refused():
    task = AffineTask(2, seed=0, samples=1)
    objective = Misclassify(task.classifier, task.labels)
    state = PGD().start(objective, task.pixels, LINF, SampleRandom(0, ["a"]))
    with pytest.raises(TypeError, match="Square cannot continue a PGDState"):
        Square().step(objective, state)
    assert isinstance(Square().start(objective, task.pixels, LINF, SampleRandom(0, ["a"])), SquareState)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"queries": 0}, "0 queries, 1 restarts"),
        ({"restarts": 0}, "5000 queries, 0 restarts"),
        ({"initial_share": 0.0}, r"initial_share is 0\.0.*\n.*above 0"),
        ({"initial_share": 1.5}, r"initial_share is 1\.5"),
    ],
)
def test_impossible_settings_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        ATTACKS.create("square", settings)
