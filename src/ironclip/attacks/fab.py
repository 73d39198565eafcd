"""FAB and FAB-T: the nearest break there is, by projecting onto linearised class boundaries.

FAB projects onto the nearest of all boundaries, FAB-T onto that of one target after the other.

Source: Croce and Hein, ICML 2020, arXiv:1907.02044, algorithm 1 (FAB, final search included) with the targets of
arXiv:2003.01690 (FAB-T); evaluation plan 2.6. Deviations: a break at a point where only the gradient was wanted counts
too; the final search is once a restart, not once a run; at the end the nearest break is pulled into the ball and
examined there; projections are solved exactly, without sorting.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

from ironclip.attacks.aiming import refuse_targeted_game, run_seeds, run_streams, unit_direction
from ironclip.attacks.base import Attack, State, improves, register_attack
from ironclip.attacks.objectives import Evaluation, Objective, frozen, gradient_of, input_gradient, loss_used
from ironclip.attacks.threat_model import Norm, ThreatModel
from ironclip.errors import ConfigError
from ironclip.randomness import SampleRandom

_OVERSHOOT = 1.05
"""How far beyond the linearised boundary a step leads."""
_PULL = 0.1
"""Largest weight of the boundary's point nearest to the image itself."""
_BACK = 0.9
"""Where a break is left for, on the way to it from the image."""
_EVERY_CLASS = 2**31
"""More classes than there are."""
_SEARCHES = 3
"""Points of the final search, between the image and its nearest break."""
_BEYOND = 0.02
"""How far beyond the crossing that a search expects it looks, as a share of what is left to the break."""


@dataclass(frozen=True, kw_only=True)
class FABState(State):
    """Where a run stands, and which of the runs it is; `radius` is float64 and never ends at a ball.

    Attributes:
        x: `[B, 3, H, W]`, where the boundary is linearised next.
        nearest: The break nearest to the image, where `radius` is finite.
        depth: `[B]`, how far beyond its goal the adversary is there.
        radius: `[B]` float64, its distance; 0 where the image is wrong itself, infinite while there is no break.
        short: The point on the way to it up to which the final search has found no break.
        lack: `[B]`, how far from its goal the adversary is there, positive.
        seeds: `[B]` int64, of the runs' random starts.
        targets: `[B, K]` int64, the classes to reach, nearest on the clean image first.
        runs: How many there are.
        run: Which run this is, `runs` in the final search.
        taken: Steps taken in it.
    """

    x: Tensor
    nearest: Tensor
    depth: Tensor
    radius: Tensor
    short: Tensor
    lack: Tensor
    seeds: Tensor
    targets: Tensor
    threat: ThreatModel
    runs: int
    run: int = 0
    taken: int = 0

    def seen(self, point: Tensor, evaluation: Evaluation, *, backwards: int = 0) -> Self:
        """Return the state after a look at a point, of which the claim, the best and the nearest break are kept.

        A claim stands for the rest of the step; `best` is of points within the ball only.
        """
        distance = self.threat.distance(point, self.origin)
        inside = self.threat.contains(point, self.origin)
        won, closer = evaluation.broken & inside, evaluation.broken & (distance < self.radius)
        better = inside & improves(evaluation.value, self.best_value)
        shown = won | ~self.claimed
        return replace(
            self,
            candidate=torch.where(_wide(shown), point, self.candidate),
            value=torch.where(shown, evaluation.value, self.value),
            claimed=self.claimed | won,
            best=torch.where(_wide(better), point, self.best),
            best_value=torch.where(better, evaluation.value, self.best_value),
            nearest=torch.where(_wide(closer), point, self.nearest),
            depth=torch.where(closer, _reach(evaluation), self.depth),
            radius=torch.where(closer, distance, self.radius),
            forwards=self.forwards + 1,
            backwards=self.backwards + backwards,
        )


@dataclass(frozen=True, kw_only=True)
class _FAB(Attack):
    """What both share: runs of steps across a linearised boundary, the final search, the look at the end."""

    steps: int = 100
    start_at: Literal["zero", "random"] = "zero"
    loss: str = "margin"
    restarts: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise ConfigError(f"attack: {self.steps} steps, {self.restarts} restarts.", "Give at least 1 of each.")
        if self.start_at not in ("zero", "random"):
            raise ConfigError(f'attack.start_at is "{self.start_at}".', "Give one of zero, random.")

    @abstractmethod
    def _aims(self) -> tuple[int, bool]:
        """Return at how many classes to aim at most, and whether each has a run of its own."""

    @abstractmethod
    def _boundary(self, objective: Objective, state: FABState) -> tuple[Tensor, Tensor, Evaluation, int]:
        """Return slopes and height of the linear function that crosses 0, what is at `x`, and the gradients spent."""

    def check(self, threat: ThreatModel) -> None:
        """Refuse a game whose target is given."""
        refuse_targeted_game(self.name, "apgd", threat)

    def loss_used(self, classes: int) -> str:
        """Name the loss whose boundary the search follows."""
        return loss_used("margin_t", classes)

    def for_restart(self, restart: int) -> Self:
        """Return these settings; after the first restart with random starts."""
        return replace(self, start_at="random") if restart else self

    def radii(self, objective: Objective, pixels: Tensor, threat: ThreatModel, random: SampleRandom) -> Tensor:
        """Return how far the nearest break found is from each image, `[B]` float64; infinite where none was found.

        The search does not end at the ball, so that one run gives an upper bound of the robustness at every eps. The
        radius of the threat model matters to random starts, and to the last look, which is at the edge of the ball.
        """
        found = torch.full((len(pixels),), torch.inf, dtype=torch.float64, device=pixels.device)
        with frozen(objective.modules):
            for restart in range(self.restarts):
                attack = self.for_restart(restart)
                state = attack.start(objective, pixels, threat, replace(random, scope=f"{random.scope}|{restart}"))
                while not state.done:
                    state = attack.step(objective, state)
                found = torch.minimum(found, state.radius)
        return found

    def start(self, objective: Objective, pixels: Tensor, threat: ThreatModel, random: SampleRandom) -> FABState:
        """Rank the classes on the clean image, and return the state at the first point of the first run."""
        with torch.no_grad():
            evaluation = objective.evaluate(pixels)
        count, a_run_each = self._aims()
        targets = objective.rivals(evaluation, count)
        state = FABState.fresh(
            pixels,
            x=pixels,
            nearest=pixels,
            depth=torch.zeros_like(evaluation.value),
            radius=torch.full((len(pixels),), torch.inf, dtype=torch.float64, device=pixels.device),
            short=pixels,
            lack=-_reach(evaluation),
            seeds=run_seeds(random, pixels.device),
            targets=targets,
            threat=threat,
            runs=targets.shape[1] if a_run_each else 1,
        ).seen(pixels, evaluation)
        return replace(state, **self._outset(state, 0))

    def step(self, objective: Objective, state: State) -> FABState:
        """Step across the boundary as linearised at `x`; after the last run, search along the way to the break."""
        if not isinstance(state, FABState):
            raise TypeError(f"FAB cannot continue a {type(state).__name__}")
        state = replace(state, claimed=torch.zeros_like(state.claimed))
        if state.run == state.runs:
            return _searched(objective, state) if state.taken < _SEARCHES else _concluded(objective, state)
        slopes, height, here, gradients = self._boundary(objective, state)
        moved = _across(state, slopes, height)
        with torch.no_grad():
            there = objective.evaluate(moved)
        state = state.seen(state.x, here, backwards=gradients).seen(moved, there)
        back = state.origin + _BACK * (moved - state.origin)
        state = replace(state, x=torch.where(_wide(there.broken), back, moved), taken=state.taken + 1)
        return replace(state, **self._outset(state, state.run + 1)) if state.taken == self.steps else state

    def _outset(self, state: FABState, run: int) -> dict[str, Any]:
        """Return everything that a new run begins with."""
        x = state.origin
        if run == state.runs:
            x = state.x
        elif self.start_at == "random":
            direction = unit_direction(x, state.threat, run_streams(state.seeds, run))
            length = state.radius.clamp(max=state.threat.radius).to(x.dtype) / 2
            x = (x + _wide(length) * direction).clamp(0, 1)
        return {"x": x, "run": run, "taken": 0}


@register_attack("fab", tags={"image", "white-box"})
@dataclass(frozen=True, kw_only=True)
class FAB(_FAB):
    """Search for the nearest break by projecting onto the nearest of all linearised boundaries.

    A step costs a gradient a class, which is why `fab_t` is there for many classes.

    Attributes:
        steps: Steps, of two forwards and a gradient a wrong class each.
        start_at: Where the search begins: "zero" (the image itself) or "random", half a radius away, as each restart
            does but the first.
        loss: The objective that an evaluation builds; the search follows the margin whatever it is.
        restarts: How often to start afresh on survivors.
    """

    def _aims(self) -> tuple[int, bool]:
        return _EVERY_CLASS, False

    def _boundary(self, objective: Objective, state: FABState) -> tuple[Tensor, Tensor, Evaluation, int]:
        with torch.enable_grad():
            leaf = state.x.detach().requires_grad_(True)
            evaluation = objective.evaluate(leaf)
            heights = [objective.aim(evaluation, target, "margin_t") for target in state.targets.unbind(dim=1)]
        slopes, height = torch.zeros_like(leaf), torch.zeros_like(heights[0])
        distance = torch.full_like(state.radius, torch.inf)
        for one in heights:
            gradient = gradient_of(one, leaf, keep_graph=True)
            far = _distance(gradient, one.detach(), state.threat.norm)
            nearer = far < distance
            slopes, height = torch.where(_wide(nearer), gradient, slopes), torch.where(nearer, one.detach(), height)
            distance = torch.where(nearer, far, distance)
        return slopes.detach(), height, evaluation.each(Tensor.detach), len(heights)


@register_attack("fab_t", tags={"image", "white-box"})
@dataclass(frozen=True, kw_only=True)
class TargetedFAB(_FAB):
    """Search for the nearest break by projecting onto linearised boundaries, a run for each target.

    Attributes:
        steps: Steps a run, of two forwards and a gradient each.
        targets: How many classes to try, nearest on the clean image first; all but the label's, if they are fewer.
        start_at: Where runs begin: "zero" (the image itself) or "random", half a radius away, as each restart does but
            the first.
        loss: The objective that an evaluation builds; the search follows the margin whatever it is.
        restarts: How often to start afresh on survivors.
    """

    targets: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targets < 1:
            raise ConfigError(f"attack: {self.targets} targets.", "Give at least 1.")

    def _aims(self) -> tuple[int, bool]:
        return self.targets, True

    def _boundary(self, objective: Objective, state: FABState) -> tuple[Tensor, Tensor, Evaluation, int]:
        target = state.targets[:, state.run]

        def beyond(evaluation: Evaluation) -> Tensor:
            return objective.aim(evaluation, target, "margin_t")

        gradient, here = input_gradient(objective, state.x, beyond)
        return gradient, beyond(here), here, 1


def _searched(objective: Objective, state: FABState) -> FABState:
    """Look where the boundary should be between a point that holds and the nearest break: a secant, a hair beyond."""
    crossing = state.lack / (state.lack + state.depth)
    ahead = torch.nan_to_num(crossing, nan=1.0).clamp(0, 1)
    point = torch.lerp(state.short, state.nearest, _wide(ahead + _BEYOND * (1 - ahead)))
    with torch.no_grad():
        evaluation = objective.evaluate(point)
    holds = ~evaluation.broken & state.radius.isfinite()
    state = state.seen(point, evaluation)
    return replace(
        state,
        # Where the far end stays, half of its depth: secants of a bent function fall short again and again.
        depth=torch.where(holds, state.depth / 2, state.depth),
        short=torch.where(_wide(holds), point, state.short),
        lack=torch.where(holds, -_reach(evaluation), state.lack),
        taken=state.taken + 1,
    )


def _concluded(objective: Objective, state: FABState) -> FABState:
    """Look at the nearest break, or where there is none at the last point, pulled into the ball."""
    found = state.radius.isfinite() & (state.radius > 0)
    point = state.threat.project(torch.where(_wide(found), state.nearest, state.x), state.origin)
    with torch.no_grad():
        evaluation = objective.evaluate(point)
    return replace(state.seen(point, evaluation), done=True)


def _reach(evaluation: Evaluation) -> Tensor:
    """Return how far beyond its goal the adversary is, `[B]`, negative short of it."""
    if evaluation.margin is None:
        raise TypeError("an objective with classes to aim at gives a margin")
    return evaluation.margin


def _distance(slopes: Tensor, height: Tensor, norm: Norm) -> Tensor:
    """Return how far the zeros of a linear function are, by the norm that is dual to the slopes', `[B]` float64."""
    flat = slopes.double().flatten(1)
    steepness = flat.abs().sum(dim=1) if norm == "linf" else torch.linalg.vector_norm(flat, dim=1)
    return torch.where(steepness > 0, height.double().abs() / steepness, torch.inf)


def _across(state: FABState, slopes: Tensor, height: Tensor) -> Tensor:
    """Return the next point: beyond the plane where `height`, linearised at `x` with `slopes`, is 0."""
    x, origin, slopes, height = state.x.double(), state.origin.double(), slopes.double(), height.double()
    # A height that is no number tells nothing of where to go.
    rise = torch.nan_to_num(-height, nan=0.0, posinf=0.0, neginf=0.0)
    from_x = shortest_move(x, slopes, rise, state.threat.norm)
    from_origin = shortest_move(origin, slopes, rise + (slopes * (x - origin)).flatten(1).sum(dim=1), state.threat.norm)
    near, far = (_size(move, state.threat.norm).clamp(min=1e-8) for move in (from_x, from_origin))
    pull = _wide((near / (near + far)).clamp(max=_PULL))
    moved = (1 - pull) * (x + _OVERSHOOT * from_x) + pull * (origin + _OVERSHOOT * from_origin)
    return moved.clamp(0, 1).to(state.x.dtype)


def shortest_move(pixels: Tensor, slopes: Tensor, rise: Tensor, norm: Norm) -> Tensor:
    """Return the shortest move within [0, 1] by which the linear function with given slopes changes by `rise`.

    Entries move at their pace (1 in linf, the size of the slope in l2) until they meet the box: the time that this
    takes is the root of a concave function that is linear in pieces, to which Newton's method climbs in a few steps.

    Args:
        pixels: Float64 `[B, 3, H, W]` in [0, 1].
        slopes: Float64 `[B, 3, H, W]`.
        rise: Float64 `[B]`, of either sign.
        norm: By which the move is the shortest, "linf" or "l2".

    Returns:
        Float64 `[B, 3, H, W]`; where the box does not allow for so much, the move to its corner.
    """
    largest = slopes.flatten(1).abs().amax(dim=1)
    scale = torch.where(largest > 0, largest, 1)
    size = (slopes.abs() / _wide(scale)).flatten(1)
    way = (slopes.sign() * _wide(rise.sign())).flatten(1)
    # Slopes of a 1e-30th do nothing but overflow the time.
    room = torch.where(way > 0, 1 - pixels.flatten(1), pixels.flatten(1)) * ((way != 0) & (size > 1e-30))
    pace = torch.ones_like(size) if norm == "linf" else size
    needed = rise.abs() / scale
    time = torch.zeros_like(needed)
    for _ in range(_NEWTON_STEPS):
        moving = time[:, None] * pace < room
        speed = (size * pace * moving).sum(dim=1)
        left = needed - (size * room * ~moving).sum(dim=1)
        later = torch.where(speed > 0, left / torch.where(speed > 0, speed, 1), time).maximum(time)
        if torch.equal(later, time):
            break
        time = later
    return (way * torch.minimum(time[:, None] * pace, room)).view_as(pixels)


_NEWTON_STEPS = 50


def _size(move: Tensor, norm: Norm) -> Tensor:
    flat = move.flatten(1)
    size: Tensor = flat.abs().amax(dim=1) if norm == "linf" else torch.linalg.vector_norm(flat, dim=1)
    return size


def _wide(column: Tensor) -> Tensor:
    """Shape `[B]` to broadcast over images."""
    return column.view(-1, 1, 1, 1)
