"""A classifier behind a step without gradients, which the adversary replaces by the identity on the way back (BPDA).

Source: Athalye et al., ICML 2018, arXiv:1802.00420, section 4.1; level L1 of the evaluation plan, 2.13.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ironclip.models.zero_shot import Classifier


class StraightThrough(Classifier):
    """What an adversary attacks who knows the step: the defence forwards, the identity backwards.

    Judge the defended model itself by what comes out (`evaluation.specialised.bpda_stronger`): here the step's result
    passes through a sum, which rounds.

    Args:
        inner: The classifier behind the step.
        step: Pixels `[B, 3, H, W]` to pixels of the same shape: a codec, a quantisation, a purification.
    """

    def __init__(self, inner: Classifier, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = inner
        self.step = step

    @property
    def device(self) -> torch.device:
        """Where pixels have to lie."""
        return self.inner.device

    def logits(self, pixels: Tensor) -> Tensor:
        """Score the images after the step, `[B, C]`; the gradient is that at the images after the step."""
        with torch.no_grad():
            moved = self.step(pixels.detach()) - pixels
        return self.inner.logits(pixels + moved)
