"""The 8-bit adversary: any attack, held to images that a PNG file can store.

The search examines rounded points and follows the gradient there as if nothing had been rounded; what it claims is
rounded in the same way before it is judged. Source: evaluation plan 1.5. Deviation: instead of an ascent that starts
where a float attack ended, the attack itself plays on the grid, so that FAB, Square and lists of attacks can too.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ironclip.attacks.objectives import Evaluation, Objective
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ValueRangeError

_LEVELS = 255
_SLACK = 1e-4
"""A level counts as whole if it is this near: float32 keeps k/255 up to about 1e-5 of a level."""


def check_levels(pixels: Tensor) -> None:
    """Refuse clean images that are not 8-bit: around them the ball may hold no 8-bit image at all.

    Raises:
        ValueRangeError: A pixel is no multiple of 1/255.
    """
    levels = _LEVELS * pixels.double()
    off = (levels - levels.round()).abs()
    if off.numel() and not float(off.max()) <= _SLACK:
        raise ValueRangeError(
            f"a pixel lies {float(off.max()):.2g} of a level off the 8-bit grid, on which this adversary plays.",
            "Give 8-bit images (acting: native, resized while 8-bit: ?size=224), or leave threat.integer off.",
        )


def snap(pixels: Tensor, origin: Tensor, threat: ThreatModel) -> Tensor:
    """Return the nearest 8-bit images in the ball, `[B, 3, H, W]`; in l2 rounded towards the origin where needed.

    Args:
        pixels: Any points.
        origin: Clean 8-bit images.
        threat: Norm and radius.
    """
    home = (_LEVELS * origin).round()
    if threat.norm == "linf":
        reach = int(_LEVELS * threat.radius + _SLACK)
        moved = ((_LEVELS * pixels).round() - home).clamp(-reach, reach)
    else:
        delta = _LEVELS * threat.project(pixels, origin) - home
        moved = delta.round()
        length = torch.linalg.vector_norm(moved.double().flatten(1), dim=1)
        # Entries that only shrink cannot leave a ball in which they lie.
        far = length > _LEVELS * threat.radius
        moved = torch.where(far.view(-1, 1, 1, 1), delta.trunc(), moved)
    return (home + moved).clamp(0, _LEVELS) / _LEVELS


class _Straight(torch.autograd.Function):
    """Another point in the forward pass, nothing in the backward pass."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, snapped: Tensor) -> Tensor:
        return snapped.view_as(snapped)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


@dataclass(frozen=True)
class OnGrid(Objective):
    """An objective that looks at the 8-bit image nearest to each point.

    Attributes:
        inner: The objective.
        origin: `[B, 3, H, W]`, clean 8-bit images.
        threat: Norm and radius.
    """

    inner: Objective
    origin: Tensor
    threat: ThreatModel

    def evaluate(self, pixels: Tensor) -> Evaluation:
        """Evaluate the rounded points; gradients pass the rounding unchanged."""
        return self.inner.evaluate(self._snapped(pixels))

    def embed(self, pixels: Tensor) -> Tensor:
        """Embed the rounded points."""
        return self.inner.embed(self._snapped(pixels))

    def take(self, rows: Tensor) -> OnGrid:
        """Return the objective of the given rows."""
        return OnGrid(self.inner.take(rows), self.origin[rows.to(self.origin.device)], self.threat)

    def rivals(self, evaluation: Evaluation, count: int) -> Tensor:
        """Return those of the objective."""
        return self.inner.rivals(evaluation, count)

    def aim(self, evaluation: Evaluation, targets: Tensor, loss: str) -> Tensor:
        """Return the value of the objective."""
        return self.inner.aim(evaluation, targets, loss)

    @property
    def class_names(self) -> Sequence[str]:
        """Those of the objective."""
        return self.inner.class_names

    @property
    def modules(self) -> Sequence[nn.Module]:
        """Those of the objective."""
        return self.inner.modules

    @property
    def device(self) -> torch.device:
        """That of the objective."""
        return self.inner.device

    @property
    def precisions(self) -> frozenset[torch.dtype]:
        """Those of the objective."""
        return self.inner.precisions

    @property
    def tie_tolerance(self) -> float:
        """That of the objective."""
        return self.inner.tie_tolerance

    def computing(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        """Let the objective compute in another precision."""
        return self.inner.computing(dtype)

    def _snapped(self, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            near = snap(pixels, self.origin.to(pixels), self.threat)
        through: Tensor = _Straight.apply(pixels, near)
        return through
