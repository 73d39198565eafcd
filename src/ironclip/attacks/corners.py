"""Corners: points of the ball at random, as far out as it goes. What does not outdo them searches nothing.

Source: the noise check of the evaluation plan, 3.1; in linf each entry moves by eps up or down, in l2 the point is
uniform on the sphere. Deviations: none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ironclip.attacks.aiming import run_seeds, run_streams
from ironclip.attacks.base import Attack, State, register_attack
from ironclip.attacks.objectives import Objective
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError
from ironclip.randomness import SampleRandom


@dataclass(frozen=True, kw_only=True)
class CornersState(State):
    """How many points have been examined, and the seeds `[B]` of all."""

    threat: ThreatModel
    seeds: Tensor
    examined_points: int
    queries: Tensor


@register_attack("corners", tags={"image", "score"})
@dataclass(frozen=True, kw_only=True)
class Corners(Attack):
    """Random points at the edge of the ball.

    Attributes:
        queries: Points to examine; each costs one forward.
        loss: The objective that an evaluation builds, by which the best point is chosen: "ce", "margin" or "dlr".
        restarts: How often to start afresh on survivors; the same as more queries.
    """

    queries: int = 100
    loss: str = "margin"
    restarts: int = 1

    def __post_init__(self) -> None:
        if self.queries < 1 or self.restarts < 1:
            raise ConfigError(f"attack: {self.queries} queries, {self.restarts} restarts.", "Give at least 1 of each.")

    def start(self, objective: Objective, pixels: Tensor, threat: ThreatModel, random: SampleRandom) -> CornersState:
        """Return the state before the first point."""
        seeds = run_seeds(random, pixels.device)
        return CornersState.fresh(
            pixels, threat=threat, seeds=seeds, examined_points=0, queries=torch.zeros_like(seeds)
        )

    def step(self, objective: Objective, state: State) -> CornersState:
        """Examine the next point."""
        if not isinstance(state, CornersState):
            raise TypeError(f"Corners cannot continue a {type(state).__name__}")
        threat, number = state.threat, state.examined_points
        noise = run_streams(state.seeds, number).normal(state.origin.shape[1:], "corner").to(state.origin)
        point = (state.origin + threat.radius * threat.steepest_ascent(noise)).clamp(0, 1)
        with torch.no_grad():
            evaluation = objective.evaluate(point)
        return replace(
            state.examined(point, evaluation, backward=False),
            queries=state.queries + 1,
            examined_points=number + 1,
            done=number + 1 == self.queries,
        )
