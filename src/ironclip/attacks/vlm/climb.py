"""APGD as published attacks on vision-language models run it: no random start, a first step of eps instead of 2 eps.

Source: chs20/RobustVLM, Schlarmann et al., ICML 2024, arXiv:2402.12336, appendix B; evaluation plan 7.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from ironclip.attacks.apgd import APGD, APGDState
from ironclip.attacks.objectives import Objective
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError
from ironclip.randomness import SampleRandom


@dataclass(frozen=True, kw_only=True)
class Climb(APGD):
    """APGD from the clean image, or from where an earlier search has come.

    Attributes:
        begin: By sample key the point to start from, `[3, H, W]`; the clean image where there is none.
    """

    name: ClassVar[str] = "climb"
    begin: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.restarts != 1:
            raise ConfigError(
                f"attack: {self.restarts} restarts of a search that begins at the same point.", "Set restarts to 1."
            )

    def start(self, objective: Objective, pixels: Tensor, threat: ThreatModel, random: SampleRandom) -> APGDState:
        """Return the state at the first point, which is not yet examined."""
        state = super().start(objective, pixels, threat, random)
        x = pixels
        if self.begin and len(pixels):
            rows = [self.begin.get(key, clean.cpu()) for key, clean in zip(random.keys, pixels, strict=True)]
            x = threat.project(torch.stack(rows).to(pixels.device, pixels.dtype), pixels)
        return replace(state, x=x, previous=x, peak=x, step_size=torch.full_like(state.step_size, threat.radius))
