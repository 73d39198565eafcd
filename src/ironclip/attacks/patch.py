"""An adversarial patch: a square of the image is the adversary's, the rest is not touched.

Source: Brown et al., 2017, arXiv:1712.09665 (the idea); Karmon et al., ICML 2018, arXiv:1801.02608 (a patch for each
image). Deviations: the place is drawn for each sample and not searched, and nothing is printed or turned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ironclip.attacks.base import Attack, State, register_attack
from ironclip.attacks.objectives import Objective, input_gradient
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError
from ironclip.randomness import SampleRandom


@dataclass(frozen=True, kw_only=True)
class PatchState(State):
    """The current point, where the patch is `[B, 1, H, W]` bool, and steps to go."""

    x: Tensor
    window: Tensor
    threat: ThreatModel
    steps_left: int


@register_attack("patch", tags={"local", "white-box"})
@dataclass(frozen=True, kw_only=True)
class Patch(Attack):
    """Sign ascent within a square whose place is the sample's; each restart draws another place.

    The ball still holds: a patch of any content is the linf ball of radius 1, `--eps 1`.

    Attributes:
        share: Area of the square as a share of the image's.
        steps: Gradient steps; one more forward examines the last point.
        rel_step_size: Length of the first step as a share of eps; it falls to a tenth in a straight line.
        loss: The objective that an evaluation builds: "ce", "margin" or "dlr".
        restarts: Places to try on survivors.
    """

    share: float = 0.05
    steps: int = 100
    rel_step_size: float = 0.25
    loss: str = "ce"
    restarts: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise ConfigError(f"attack: {self.steps} steps, {self.restarts} restarts.", "Give at least 1 of each.")
        if not 0 < self.share <= 1:
            raise ConfigError(f"attack.share is {self.share}.", "Give a share of the image above 0, at most 1.")
        if not 0 < self.rel_step_size < float("inf"):
            raise ConfigError(f"attack.rel_step_size is {self.rel_step_size}.", "Give a positive share of eps.")

    def check(self, threat: ThreatModel) -> None:
        """Refuse another norm than linf.

        Raises:
            ConfigError: Another norm.
        """
        if threat.norm != "linf":
            raise ConfigError(f"patch bounds pixels one by one, which {threat.norm} does not.", "Use norm linf, eps 1.")

    def start(self, objective: Objective, pixels: Tensor, threat: ThreatModel, random: SampleRandom) -> PatchState:
        """Place the squares and fill them at random."""
        height, width = pixels.shape[-2:]
        side = min(max(round(math.sqrt(self.share * height * width)), 1), height, width)
        corners = random.uniform((2,), 0, 1, "place").double() * torch.tensor([height - side + 1, width - side + 1])
        down = torch.arange(height) - corners[:, :1].long()
        across = torch.arange(width) - corners[:, 1:].long()
        rows, columns = ((offset >= 0) & (offset < side) for offset in (down, across))
        window = (rows[:, :, None] & columns[:, None, :])[:, None].to(pixels.device)
        x = torch.where(window, threat.random_start(pixels, random), pixels)
        return PatchState.fresh(pixels, x=x, window=window, threat=threat, steps_left=self.steps)

    def step(self, objective: Objective, state: State) -> PatchState:
        """Examine the current point and, while steps are left, change the patch."""
        if not isinstance(state, PatchState):
            raise TypeError(f"patch cannot continue a {type(state).__name__}")
        if state.steps_left == 0:
            with torch.no_grad():
                evaluation = objective.evaluate(state.x)
            return state.examined(state.x, evaluation, backward=False, done=True)
        gradient, evaluation = input_gradient(objective, state.x)
        fall = 1 - 0.9 * (self.steps - state.steps_left) / self.steps
        step = self.rel_step_size * state.threat.radius * fall
        moved = state.threat.project(state.x + step * state.threat.steepest_ascent(gradient), state.origin)
        x = torch.where(state.window, moved, state.origin)
        examined = state.examined(state.x, evaluation, backward=True)
        return replace(examined, x=x, steps_left=state.steps_left - 1)
