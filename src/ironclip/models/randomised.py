"""Classifiers that draw at random while they answer, with draws that belong to the sample.

A defence that draws from the global state gives another answer in another batch, and no evaluation of it can be
repeated. Here a draw is a function of the streams that the caller names. Source: evaluation plan 2.12 and 6.1.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from ironclip.models.zero_shot import Classifier
from ironclip.randomness import SampleRandom


class RandomisedClassifier(Classifier):
    """A classifier whose answer is drawn anew each time; a subclass defines `drawn_logits` and `device`."""

    @abstractmethod
    def drawn_logits(self, pixels: Tensor, random: SampleRandom) -> Tensor:
        """Score `[B, 3, H, W]` with the draws of the given streams, one a row: float32 `[B, C]`."""

    def logits(self, pixels: Tensor) -> Tensor:
        """Score with draws that nobody named: their seed comes from torch's global state, as in any such model."""
        seed = int(torch.randint(2**62, ()))
        return self.drawn_logits(pixels, SampleRandom(seed, [str(row) for row in range(len(pixels))], "unnamed"))
