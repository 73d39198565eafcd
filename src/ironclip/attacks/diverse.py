"""MI-DI-FGSM: an attack whose points are meant for another model than the one it climbs.

Source: momentum, Dong et al., CVPR 2018, arXiv:1710.06081; diverse inputs, Xie et al., CVPR 2019, arXiv:1803.06978;
evaluation plan 2.11. Deviations: sizes and places are drawn for each sample, not for each batch; the momentum divides
by the mean magnitude of a gradient only where there is one, so that a zero gradient gives no NaN.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from ironclip.attacks.aiming import run_seeds, run_streams
from ironclip.attacks.base import Attack, State, register_attack
from ironclip.attacks.objectives import Evaluation, Objective, input_gradient
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError
from ironclip.randomness import SampleRandom


@dataclass(frozen=True, kw_only=True)
class DiverseState(State):
    """The current point, the accumulated gradient, the seeds `[B]` of the views, and steps to go."""

    x: Tensor
    velocity: Tensor
    seeds: Tensor
    threat: ThreatModel
    steps_left: int


@register_attack("mi_di", tags={"image", "white-box", "transfer"})
@dataclass(frozen=True, kw_only=True)
class DiverseInputs(Attack):
    """Sign steps along momentum, each gradient taken at a shrunken and zero-padded view of the point.

    Only the last iterate is examined, as published: views say nothing of the points between.

    Attributes:
        steps: Gradient steps.
        rel_step_size: Step as a share of eps; None for one over `steps`.
        momentum: Share of the accumulated gradient that a step keeps.
        diversity: Probability that a step looks at a view, not at the point itself.
        shrink: Smallest side of a view as a share of the image's.
        loss: The objective that an evaluation builds: "ce", "margin" or "dlr".
        restarts: How often to start afresh on survivors, with other views.
    """

    steps: int = 10
    rel_step_size: float | None = None
    momentum: float = 1.0
    diversity: float = 0.5
    shrink: float = 0.9
    loss: str = "ce"
    restarts: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise ConfigError(f"attack: {self.steps} steps, {self.restarts} restarts.", "Give at least 1 of each.")
        if self.rel_step_size is not None and not 0 < self.rel_step_size < float("inf"):
            raise ConfigError(f"attack.rel_step_size is {self.rel_step_size}.", "Give a positive share of eps.")
        if not 0 <= self.momentum < float("inf"):
            raise ConfigError(f"attack.momentum is {self.momentum}.", "Give a share of at least 0.")
        if not 0 <= self.diversity <= 1:
            raise ConfigError(f"attack.diversity is {self.diversity}.", "Give a probability from 0 to 1.")
        if not 0 < self.shrink <= 1:
            raise ConfigError(f"attack.shrink is {self.shrink}.", "Give a share above 0, at most 1.")

    def start(self, objective: Objective, pixels: Tensor, threat: ThreatModel, random: SampleRandom) -> DiverseState:
        """Return the state at the clean image."""
        return DiverseState.fresh(
            pixels,
            x=pixels,
            velocity=torch.zeros_like(pixels),
            seeds=run_seeds(random, pixels.device),
            threat=threat,
            steps_left=self.steps,
        )

    def step(self, objective: Objective, state: State) -> DiverseState:
        """Move on by the gradient at a view, or examine the last point."""
        if not isinstance(state, DiverseState):
            raise TypeError(f"mi_di cannot continue a {type(state).__name__}")
        if state.steps_left == 0:
            with torch.no_grad():
                evaluation = objective.evaluate(state.x)
            return state.examined(state.x, evaluation, backward=False, done=True)
        draws = run_streams(state.seeds, state.steps_left).uniform((4,), 0, 1, "view").to(state.seeds.device)
        gradient, _ = input_gradient(_AtView(objective, draws, self), state.x)
        # No guard is added to the magnitude: 1e-12 is larger than the gradient of a confident model.
        magnitude = gradient.abs().mean(dim=(1, 2, 3), keepdim=True)
        velocity = self.momentum * state.velocity + gradient / torch.where(magnitude > 0, magnitude, 1)
        share = Fraction(1, self.steps) if self.rel_step_size is None else Fraction(self.rel_step_size)
        step, threat = float(share * Fraction(state.threat.radius)), state.threat
        return replace(
            state,
            x=threat.project(state.x + step * threat.steepest_ascent(velocity), state.origin),
            velocity=velocity,
            forwards=state.forwards + 1,
            backwards=state.backwards + 1,
            steps_left=state.steps_left - 1,
        )

    def view(self, pixels: Tensor, draws: Tensor) -> Tensor:
        """Shrink each image and put it somewhere on black, `[B, 3, H, W]`, or leave it.

        Args:
            pixels: Images.
            draws: `[B, 4]` in [0, 1): whether, how small, how far down, how far to the right.
        """
        height, width = pixels.shape[-2:]
        chosen = draws[:, 0] < self.diversity
        sides = []
        for side, place in ((height, draws[:, 2]), (width, draws[:, 3])):
            least = max(int(self.shrink * side), 1)
            size = (least + draws[:, 1].double() * (side - least + 1)).long().clamp(max=side)
            offset = (place.double() * (side - size + 1)).long()
            sides.append(_interpolation(side, size, offset).to(pixels))
        rows, columns = sides
        # Two small products: a gather's backward pass adds up in no fixed order on a GPU.
        shrunk = torch.matmul(torch.matmul(rows[:, None], pixels), columns[:, None].transpose(2, 3))
        return torch.where(chosen.view(-1, 1, 1, 1), shrunk, pixels)


def _interpolation(side: int, size: Tensor, offset: Tensor) -> Tensor:
    """Return matrices `[B, side, side]` that shrink a line to `size` `[B]` bilinearly and put it at `offset` `[B]`."""
    places = torch.arange(side, device=size.device, dtype=torch.float64)
    inner = places[None, :] - offset[:, None]  # where each output falls within the shrunken line
    inside = (inner >= 0) & (inner < size[:, None])
    source = ((inner + 0.5) * (side / size[:, None]) - 0.5).clamp(0, side - 1)
    weights = (1 - (source[:, :, None] - places[None, None, :]).abs()).clamp(min=0)
    return weights * inside[:, :, None]


@dataclass(frozen=True)
class _AtView(Objective):
    """The objective, at a view of each point."""

    objective: Objective
    draws: Tensor
    attack: DiverseInputs

    def evaluate(self, pixels: Tensor) -> Evaluation:
        return self.objective.evaluate(self.attack.view(pixels, self.draws))

    def take(self, rows: Tensor) -> _AtView:
        return replace(self, objective=self.objective.take(rows), draws=self.draws[rows])
