"""APGD: projected gradient ascent that finds its step size by itself, untargeted and over a list of targets.

Source: Croce and Hein, ICML 2020, arXiv:2003.01690, algorithm 1 and section 3; evaluation plan 2.4 and 2.5. Deviations:
starts belong to a sample and not to a batch; the first window compares with the value at the start, where published
code compares with an unfilled entry; the losses of 2.1 take the place of those that few classes do not allow.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ironclip.attacks.aiming import refuse_targeted_game, run_seeds, run_streams, unit_direction
from ironclip.attacks.base import Attack, State, improves, register_attack
from ironclip.attacks.objectives import CLASSIFICATION_LOSSES, Evaluation, Objective, input_gradient, loss_used
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError
from ironclip.randomness import SampleRandom

_INERTIA = 0.25
"""Share of the last displacement in a step."""


@functools.cache
def reviews(steps: int) -> Mapping[int, int]:
    """Return when step sizes are reviewed: steps taken, and how many of them since the last review."""
    found, taken, window = {}, 0, max(22 * steps // 100, 1)
    while (taken := taken + window) <= steps:
        found[taken] = window
        window = max(window - max(3 * steps // 100, 1), max(6 * steps // 100, 1))
    return found


@dataclass(frozen=True, kw_only=True)
class APGDState(State):
    """One run of APGD, and which of the runs it is.

    Attributes:
        x: `[B, 3, H, W]`, the point to be examined next.
        previous: The point from which the last step led to it.
        peak: The point of this run where what it climbs was highest, with that value `[B]` and the gradient there.
        last_value: `[B]`, at the point examined last.
        reviewed_value: `[B]`, the peak's at the last review.
        step_size: `[B]`, in pixel units.
        rises: `[B]` int64, steps since the last review after which the value was higher than before.
        shortened: `[B]` bool, whether the last review has shortened the step.
        seeds: `[B]` int64, of the runs' random starts.
        targets: `[B, K]` int64, a run each; None for one run without a target.
        run: Which run this is.
        taken: Steps taken in it.
    """

    x: Tensor
    previous: Tensor
    peak: Tensor
    peak_value: Tensor
    peak_gradient: Tensor
    last_value: Tensor
    reviewed_value: Tensor
    step_size: Tensor
    rises: Tensor
    shortened: Tensor
    seeds: Tensor
    threat: ThreatModel
    targets: Tensor | None = None
    run: int = 0
    taken: int = 0


@register_attack("apgd", tags={"image", "white-box"})
@dataclass(frozen=True, kw_only=True)
class APGD(Attack):
    """Gradient ascent from a random start with momentum, whose step is halved where a sample's progress ends.

    Attributes:
        steps: Gradient steps; one more forward examines the last point.
        loss: The objective that an evaluation builds: "ce", "margin" or "dlr".
        restarts: How often to start afresh on survivors.
        eot: Draws of a randomised model that each gradient and value is the mean of (expectation over transformation);
            a break is one in more than half of them.
    """

    steps: int = 100
    loss: str = "ce"
    restarts: int = 1
    eot: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1 or self.eot < 1:
            raise ConfigError(
                f"attack: {self.steps} steps, {self.restarts} restarts, {self.eot} draws (eot).",
                "Give at least 1 of each.",
            )
        if self.loss not in CLASSIFICATION_LOSSES:
            raise ConfigError(f'attack.loss is "{self.loss}".', f"Give one of {', '.join(CLASSIFICATION_LOSSES)}.")

    def climbed(self, objective: Objective, state: APGDState, evaluation: Evaluation) -> Tensor:
        """Return the value that this run climbs, `[B]`."""
        return evaluation.value

    def start(self, objective: Objective, pixels: Tensor, threat: ThreatModel, random: SampleRandom) -> APGDState:
        """Return the state at the first point, which is not yet examined."""
        seeds = run_seeds(random, pixels.device)
        return APGDState.fresh(pixels, seeds=seeds, threat=threat, **self._outset(pixels, seeds, threat, 0))

    def step(self, objective: Objective, state: State) -> APGDState:
        """Examine the current point and move on from it; after the last step of a run begin the next one."""
        if not isinstance(state, APGDState):
            raise TypeError(f"APGD cannot continue a {type(state).__name__}")
        last = state.taken == self.steps
        gradient, climbed, evaluation = self._look(objective, state, backward=not last)
        examined = state.examined(state.x, evaluation, backward=not last)
        more = self.eot - 1  # `examined` counts one look
        forwards, backwards = examined.forwards + more, examined.backwards + more * (not last)
        examined = replace(examined, forwards=forwards, backwards=backwards)
        if not last:
            return self._moved(examined, gradient, climbed)
        run = state.run + 1
        if state.targets is None or run == state.targets.shape[1]:
            return replace(examined, done=True)
        return replace(examined, **self._outset(state.origin, state.seeds, state.threat, run))

    def _outset(self, origin: Tensor, seeds: Tensor, threat: ThreatModel, run: int) -> dict[str, Any]:
        """Return everything that a new run begins with."""
        direction = unit_direction(origin, threat, run_streams(seeds, run))
        x = (origin + threat.radius * direction).clamp(0, 1)
        lowest = origin.new_full((len(origin),), -torch.inf)
        return {
            "x": x,
            "previous": x,
            "peak": x,
            "peak_value": lowest,
            "peak_gradient": torch.zeros_like(x),
            "last_value": -lowest,  # no step leads to the start, so none has risen
            "reviewed_value": lowest,
            "step_size": torch.full_like(lowest, 2 * threat.radius),
            "rises": torch.zeros_like(seeds),
            "shortened": torch.ones_like(seeds, dtype=torch.bool),
            "run": run,
            "taken": 0,
        }

    def _look(self, objective: Objective, state: APGDState, *, backward: bool) -> tuple[Tensor, Tensor, Evaluation]:
        """Return gradient (zero unless asked for), climbed value and evaluation at `x`, over all draws."""
        gradient = torch.zeros_like(state.x)
        climbed, evaluations = [], []
        for _ in range(self.eot):
            if backward:
                drawn, evaluation = input_gradient(
                    objective, state.x, lambda evaluation: self.climbed(objective, state, evaluation)
                )
                gradient = gradient + drawn
            else:
                with torch.no_grad():
                    evaluation = objective.evaluate(state.x)
            climbed.append(self.climbed(objective, state, evaluation))
            evaluations.append(evaluation)
        if self.eot == 1:
            return gradient, climbed[0], evaluation
        broken = torch.stack([each.broken for each in evaluations]).float().mean(dim=0) > 0.5
        value = torch.stack([each.value for each in evaluations]).mean(dim=0)
        return gradient / self.eot, torch.stack(climbed).mean(dim=0), Evaluation(value, broken)

    def _moved(self, state: APGDState, gradient: Tensor, climbed: Tensor) -> APGDState:
        """Return the state after a step from the current point, or from the peak where a review says so."""
        higher = improves(climbed, state.peak_value)
        peak = torch.where(_wide(higher), state.x, state.peak)
        peak_value = torch.where(higher, climbed, state.peak_value)
        peak_gradient = torch.where(_wide(higher), gradient, state.peak_gradient)
        rises = state.rises + (climbed > state.last_value)
        point, step_size = state.x, state.step_size
        reviewed: dict[str, Any] = {}
        if window := reviews(self.steps).get(state.taken):
            # Either most steps led down, or the whole window has not raised the peak at a step that is not new.
            stuck = (4 * rises <= 3 * window) | (~state.shortened & ~(peak_value > state.reviewed_value))
            step_size = torch.where(stuck, step_size / 2, step_size)
            point = torch.where(_wide(stuck), peak, point)
            gradient = torch.where(_wide(stuck), peak_gradient, gradient)
            rises = torch.zeros_like(rises)
            reviewed = {"shortened": stuck, "reviewed_value": peak_value}
        threat, origin = state.threat, state.origin
        x = threat.project(point + _wide(step_size) * threat.steepest_ascent(gradient), origin)
        if state.taken:
            # After a return to the peak the last displacement is that from `previous` to it, as published.
            x = threat.project(point + (1 - _INERTIA) * (x - point) + _INERTIA * (point - state.previous), origin)
        return replace(
            state,
            x=x,
            previous=point,
            peak=peak,
            peak_value=peak_value,
            peak_gradient=peak_gradient,
            last_value=climbed,
            step_size=step_size,
            rises=rises,
            taken=state.taken + 1,
            **reviewed,
        )


@register_attack("apgd_t", tags={"image", "white-box"})
@dataclass(frozen=True, kw_only=True)
class TargetedAPGD(APGD):
    """APGD towards the classes that come nearest on the clean image, a run each; any wrong answer is a success.

    Attributes:
        targets: How many classes to try; all there are but the label's, if they are fewer.
        loss: What leads to a target: "dlr" (with fewer than four classes the margin stands in), "margin" or "ce".
    """

    targets: int = 9
    loss: str = "dlr"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targets < 1:
            raise ConfigError(f"attack.targets is {self.targets}.", "Give at least 1.")

    def check(self, threat: ThreatModel) -> None:
        """Refuse a game whose target is given."""
        refuse_targeted_game("apgd_t", "apgd", threat)

    def loss_used(self, classes: int) -> str:
        """Name the targeted loss."""
        return loss_used(f"{self.loss}_t", classes)

    def climbed(self, objective: Objective, state: APGDState, evaluation: Evaluation) -> Tensor:
        """Return the loss towards the target of this run, `[B]`."""
        if state.targets is None:
            raise TypeError("apgd_t cannot continue a state without targets")
        return objective.aim(evaluation, state.targets[:, state.run], f"{self.loss}_t")

    def start(self, objective: Objective, pixels: Tensor, threat: ThreatModel, random: SampleRandom) -> APGDState:
        """Rank the classes on the clean image, and return the state at the first point of the first run."""
        with torch.no_grad():
            evaluation = objective.evaluate(pixels)
        state = super().start(objective, pixels, threat, random).examined(pixels, evaluation, backward=False)
        return replace(state, targets=objective.rivals(evaluation, self.targets))


def _wide(column: Tensor) -> Tensor:
    """Shape `[B]` to broadcast over images."""
    return column.view(-1, 1, 1, 1)
