"""FGSM: one full step along the sign of the gradient (in l2: along the unit gradient).

Source: Goodfellow et al., ICLR 2015, arXiv:1412.6572, section 4. Deviations: none in linf.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ironclip.attacks.base import register_attack
from ironclip.attacks.pgd import PGD


@register_attack("fgsm", tags={"image", "white-box"})
@dataclass(frozen=True, kw_only=True)
class FGSM(PGD):
    """One step of length eps from the image itself."""

    steps: int = 1
    rel_step_size: float | None = 1.0
    start_at: Literal["zero", "random"] = "zero"
    keep: Literal["best", "last"] = "last"
