"""What an adversary wants of retrieval: that an image does not find its texts, or is not found by them.

What the image is compared with stays fixed and clean, whatever stands beside the image in a batch. Models are
`ironclip.models.clip.CLIPModel`; of them these objectives use `image_features`, `computing` and `device`.
Source: evaluation plan 7.3; ties go against the defender.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ironclip.attacks.objectives import Evaluation, Objective


@dataclass(frozen=True)
class _OfImages(Objective):
    """What both share.

    Attributes:
        model: The model.
        texts: `[T, D]`, unit rows of all texts.
        own: `[B, T]` bool, which texts belong to each image.
    """

    model: Any
    texts: Tensor
    own: Tensor

    @property
    def modules(self) -> Sequence[nn.Module]:
        """The model."""
        return (self.model,)

    @property
    def device(self) -> torch.device:
        """That of the texts."""
        return self.texts.device

    @property
    def precisions(self) -> frozenset[torch.dtype]:
        """Those of the image tower; similarities are float32 or float64."""
        return frozenset({torch.bfloat16, torch.float32, torch.float64})

    def computing(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        """Let the model compute in another precision."""
        context: AbstractContextManager[None] = self.model.computing(dtype)
        return context

    def similarity(self, pixels: Tensor) -> Tensor:
        """Return cosines `[B, T]`."""
        features: Tensor = self.model.image_features(pixels)
        return features @ self.texts.to(features.dtype).T


@dataclass(frozen=True)
class MissTexts(_OfImages):
    """Make a query by image miss all of its own texts.

    Attributes:
        depth: The query is broken where so many other texts stand before its nearest own one, ties included.
    """

    depth: int = 1

    def evaluate(self, pixels: Tensor) -> Evaluation:
        """Return by how much the nearest other text is nearer than the nearest own one."""
        similarity = self.similarity(pixels)
        own = similarity.masked_fill(~self.own, -torch.inf).amax(dim=1)
        others = similarity.masked_fill(self.own, -torch.inf).topk(self.depth, dim=1).values
        margin = others[:, -1] - own
        return Evaluation(others[:, 0] - own, margin >= 0, margin)

    def take(self, rows: Tensor) -> MissTexts:
        """Return the objective of the given rows."""
        return replace(self, own=self.own[rows])


@dataclass(frozen=True)
class Vanish(_OfImages):
    """Make an image of the gallery be found by none of its own texts.

    Attributes:
        nearest: `[T]`, cosine of each text to the nearest of the other images.
        deepest: `[T]`, to the last one that may stand before the own image while that still counts as found.
    """

    nearest: Tensor
    deepest: Tensor

    def evaluate(self, pixels: Tensor) -> Evaluation:
        """Return the mean over the own texts of how much nearer the nearest other image is."""
        similarity = self.similarity(pixels)
        lead = (self.nearest.to(similarity.dtype) - similarity).masked_fill(~self.own, 0)
        last = (self.deepest.to(similarity.dtype) - similarity).masked_fill(~self.own, torch.inf).amin(dim=1)
        return Evaluation(lead.sum(dim=1) / self.own.sum(dim=1), last >= 0, last)

    def take(self, rows: Tensor) -> Vanish:
        """Return the objective of the given rows."""
        return replace(self, own=self.own[rows])
