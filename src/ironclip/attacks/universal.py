"""A universal perturbation: one for all images, made on some and judged on others.

Source: Moosavi-Dezfooli et al., CVPR 2017, arXiv:1610.08401 (the idea); found by sign ascent on the clipped loss,
Shafahi et al., AAAI 2020, arXiv:1811.11304, algorithm 2. Deviation: gradients are summed over all images before each
step, not over a batch, so that the result does not hang on the order of images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ironclip.attacks.driver import DriverSettings, exact_float32, untouched_random_state
from ironclip.attacks.objectives import Evaluation, Objective, frozen, input_gradient
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError, ShapeError


@dataclass(frozen=True, kw_only=True)
class UniversalPerturbation:
    """How one perturbation is found for many images.

    Attributes:
        steps: Steps, each by the gradient over all images.
        rel_step_size: Length of the first step as a share of eps; it falls to zero in a straight line.
        ceiling: Loss at which an image counts as lost and gives no more gradient, so that a few do not lead the rest.
    """

    steps: int = 40
    rel_step_size: float = 0.5
    ceiling: float = 10.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps is {self.steps}.", "Give at least 1.")
        if not 0 < self.rel_step_size < float("inf"):
            raise ConfigError(f"rel_step_size is {self.rel_step_size}.", "Give a positive share of eps.")

    def find(
        self, objective: Objective, pixels: Tensor, threat: ThreatModel, *, settings: DriverSettings | None = None
    ) -> Tensor:
        """Return a perturbation `[3, H, W]` in the ball, which clips nothing: `applied` does.

        Args:
            objective: What it raises, for these rows; judge it on others.
            pixels: Float32 `[N, 3, H, W]` in [0, 1], N at least 1.
            threat: Norm and radius.
            settings: Rows a forward.

        Raises:
            ShapeError: There are no images.
        """
        if not len(pixels):
            raise ShapeError("no images to find a universal perturbation on.", "Give at least one.")
        tile, capped = (settings or DriverSettings()).tile, _Capped(objective, self.ceiling)
        delta = torch.zeros_like(pixels[0])
        with untouched_random_state(), exact_float32(objective.device), frozen(objective.modules):
            for number in range(self.steps):
                gradient = torch.zeros_like(delta)
                for rows in torch.arange(len(pixels)).split(tile):
                    points = applied(pixels[rows], delta).to(objective.device)
                    found, _ = input_gradient(capped.take(rows.to(objective.device)), points)
                    gradient += found.sum(dim=0).to(delta)
                length = self.rel_step_size * threat.radius * (1 - number / self.steps)
                delta = _in_ball(delta + length * threat.steepest_ascent(gradient[None])[0], threat)
        return delta


def applied(pixels: Tensor, delta: Tensor) -> Tensor:
    """Add a perturbation `[3, H, W]` to images and clip to [0, 1], `[N, 3, H, W]`.

    Raises:
        ShapeError: It is not of the images' size.
    """
    if delta.shape != pixels.shape[1:]:
        raise ShapeError(
            f"a perturbation of shape {tuple(delta.shape)} for images of {tuple(pixels.shape[1:])}.",
            "Find it on images of the same size.",
        )
    return (pixels + delta).clamp(0, 1)


def _in_ball(delta: Tensor, threat: ThreatModel) -> Tensor:
    """Bring a perturbation into the ball around zero; the box is each image's own matter."""
    if threat.norm == "linf":
        return delta.clamp(-threat.radius, threat.radius)
    length: Tensor = torch.linalg.vector_norm(delta)
    return delta * (threat.radius / (length + 1e-12)).clamp(max=1)


@dataclass(frozen=True)
class _Capped(Objective):
    """The objective, flat above the ceiling."""

    objective: Objective
    ceiling: float

    def evaluate(self, pixels: Tensor) -> Evaluation:
        evaluation = self.objective.evaluate(pixels)
        return replace(evaluation, value=evaluation.value.clamp(max=self.ceiling))

    def take(self, rows: Tensor) -> _Capped:
        return _Capped(self.objective.take(rows), self.ceiling)
