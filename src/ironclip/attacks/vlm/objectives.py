"""What an adversary wants of a vision-language model: that it does not say, that it does say, that it sees otherwise.

Models are `ironclip.models.vlm.VisionLanguageModel`; of them these objectives use `judge`, `visual_tokens`,
`computing`, `precisions` and `device`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ironclip.attacks.objectives import Evaluation, Objective


@dataclass(frozen=True)
class _OfModel(Objective):
    """What all objectives over a vision-language model share."""

    model: Any

    @property
    def modules(self) -> Sequence[nn.Module]:
        """The model."""
        return (self.model,)

    @property
    def device(self) -> torch.device:
        """That of the model."""
        device: torch.device = self.model.device
        return device

    @property
    def precisions(self) -> frozenset[torch.dtype]:
        """Those of the model."""
        return frozenset(self.model.precisions)

    def computing(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        """Let the model compute in another precision."""
        context: AbstractContextManager[None] = self.model.computing(dtype)
        return context


@dataclass(frozen=True)
class Unsay(_OfModel):
    """Make what people say of the image unlikely: the untargeted attack on captions and answers.

    Whether the model then says something else, only generating tells: nothing is ever broken here.

    Attributes:
        model: The model.
        lesson: Prompts with the references, one row an image (`model.write`).

    Source: Schlarmann and Hein, ICCV 2023 workshop, arXiv:2308.10741.
    """

    lesson: Any

    def evaluate(self, pixels: Tensor) -> Evaluation:
        """Return the loss of the references."""
        loss, _ = self.model.judge(pixels, self.lesson)
        return Evaluation(loss, torch.zeros_like(loss, dtype=torch.bool))

    def take(self, rows: Tensor) -> Unsay:
        """Return the objective of the given rows."""
        return replace(self, lesson=self.lesson.take(rows))


@dataclass(frozen=True)
class Say(_OfModel):
    """Make the model say a sentence; it is broken where its greedy answer begins with it.

    Teacher forcing tells that for the price of a forward: where the sentence's own token is the likeliest at each of
    its places, greedy decoding takes the same tokens. So the driver can leave a row the moment it falls.

    Attributes:
        model: The model.
        lesson: Prompts with the target sentences, one row an image.
    """

    lesson: Any

    def evaluate(self, pixels: Tensor) -> Evaluation:
        """Return minus the loss of the sentence, and whether it is said."""
        loss, margin = self.model.judge(pixels, self.lesson)
        return Evaluation(-loss, margin > 0, margin)

    def take(self, rows: Tensor) -> Say:
        """Return the objective of the given rows."""
        return replace(self, lesson=self.lesson.take(rows))


@dataclass(frozen=True)
class LeavePatches(_OfModel):
    """Move the patch tokens that the language model reads away from where they belong: no label, no language model.

    Cheap, and what it finds transfers to every model on the tower. At the clean image the gradient is zero: start at
    random.

    Attributes:
        model: The model.
        target: `[B, P, W]`, tokens of the clean images, no gradient.
        distance: "l2" (squared, mean over patches) or "cosine" (one minus it, mean over patches).
    """

    target: Tensor
    distance: str = "l2"

    @classmethod
    def of(cls, model: Any, pixels: Tensor, distance: str = "l2") -> LeavePatches:
        """Return the objective for these clean images `[B, 3, H, W]`."""
        with torch.no_grad():
            return cls(model, model.visual_tokens(pixels.to(model.device)), distance)

    def evaluate(self, pixels: Tensor) -> Evaluation:
        """Return the distance; nothing is ever broken."""
        tokens = self.model.visual_tokens(pixels)
        if self.distance == "l2":
            each = (tokens - self.target).square().sum(dim=2)
        else:
            each = 1 - F.cosine_similarity(tokens, self.target, dim=2)
        value = each.mean(dim=1)
        return Evaluation(value, torch.zeros_like(value, dtype=torch.bool))

    def take(self, rows: Tensor) -> LeavePatches:
        """Return the objective of the given rows."""
        return replace(self, target=self.target[rows])
