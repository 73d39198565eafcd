"""Common corruptions: fifteen things that happen to images without an adversary, at five severities.

Source: Hendrycks and Dietterich, ICLR 2019, arXiv:1903.12261 (ImageNet-C, CIFAR-10-C); evaluation plan 5.3. Deviations:
made here and not read from the published files, so figures are comparable among themselves only; draws belong to the
sample; any size of image; the ice of `frost` is drawn, not photographed; no JPEG is stored at the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ironclip.attacks.base import Attack, State, register_attack
from ironclip.attacks.natural import blur, digital, noise, weather
from ironclip.attacks.natural.constants import LARGE, SMALL, SMALL_SIDE
from ironclip.attacks.objectives import Objective
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError
from ironclip.randomness import SampleRandom

Kind = Literal[
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
]
CORRUPTIONS: tuple[Kind, ...] = get_args(Kind)
_ROOMS = (noise, blur, weather, digital)


@dataclass(frozen=True, kw_only=True)
class CorruptionState(State):
    """The corrupted image."""

    point: Tensor


@register_attack("corruption", tags={"natural"})
@dataclass(frozen=True, kw_only=True)
class Corruption(Attack):
    """One corruption at one severity; nobody searches for anything.

    "Robust" then means right on the clean and right on the corrupted image. The ball still holds: run it with `--eps
    1`, which holds every image.

    Attributes:
        kind: Which of the fifteen.
        severity: 1 to 5; images of at most 64 pixels get the constants of CIFAR-10-C, others those of ImageNet-C.
        loss: The objective that an evaluation builds, which is only recorded.
        restarts: Draws to try on survivors; more than one makes an adversary of it.
    """

    kind: Kind = "gaussian_noise"
    severity: int = 3
    loss: str = "margin"
    restarts: int = 1

    def __post_init__(self) -> None:
        if self.kind not in CORRUPTIONS:
            raise ConfigError(f'attack.kind is "{self.kind}".', f"Give one of {', '.join(CORRUPTIONS)}.")
        if self.severity not in range(1, 6):
            raise ConfigError(f"attack.severity is {self.severity}.", "Give 1, 2, 3, 4 or 5.")
        if self.restarts < 1:
            raise ConfigError(f"attack: {self.restarts} restarts.", "Give at least 1.")

    def loss_used(self, classes: int) -> str:
        """Name the corruption: no loss is followed."""
        return f"{self.kind}-{self.severity}"

    def start(self, objective: Objective, pixels: Tensor, threat: ThreatModel, random: SampleRandom) -> CorruptionState:
        """Corrupt the images."""
        points = [
            corrupted(image, self.kind, self.severity, random.generator(row, self.kind))
            for row, image in enumerate(pixels.detach().cpu())
        ]
        point = torch.stack(points).to(pixels) if points else pixels
        return CorruptionState.fresh(pixels, point=threat.project(point, pixels))

    def step(self, objective: Objective, state: State) -> CorruptionState:
        """Examine the corrupted images."""
        if not isinstance(state, CorruptionState):
            raise TypeError(f"corruption cannot continue a {type(state).__name__}")
        with torch.no_grad():
            evaluation = objective.evaluate(state.point)
        return state.examined(state.point, evaluation, backward=False, done=True)


def corrupted(pixels: Tensor, kind: Kind, severity: int, random: np.random.Generator) -> Tensor:
    """Corrupt one image.

    Args:
        pixels: Float `[3, H, W]` in [0, 1].
        kind: Which corruption.
        severity: 1 to 5.
        random: The sample's draws; those of several severities may begin alike.

    Returns:
        Float32 `[3, H, W]`, every value a multiple of 1/255.
    """
    table = SMALL if min(pixels.shape[1:]) <= SMALL_SIDE else LARGE
    constants = table[kind][severity - 1]
    settings = constants if isinstance(constants, tuple) else (constants,)
    image = pixels.double().permute(1, 2, 0).contiguous().numpy()
    changed = _function(kind)(image, random, *settings)
    levels = torch.from_numpy(np.rint(255 * changed.clip(0, 1)).astype(np.float32))
    return (levels / 255).permute(2, 0, 1).contiguous()


def all_corruptions() -> list[Corruption]:
    """Return the 75 cells: every kind at every severity, kinds in the order of `CORRUPTIONS`."""
    return [
        dataclasses.replace(Corruption(), kind=kind, severity=level) for kind in CORRUPTIONS for level in range(1, 6)
    ]


def _function(kind: str) -> Callable[..., Any]:
    functions: list[Callable[..., Any]] = [getattr(room, kind) for room in _ROOMS if hasattr(room, kind)]
    return functions[0]
