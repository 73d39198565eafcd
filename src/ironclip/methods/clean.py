"""Clean fine-tuning: the baseline without an adversary.

Source: the cross-entropy over all class prompts that TeCoA minimises, on clean images (Mao et al., ICLR 2023,
arXiv:2212.07016, without the inner maximisation). Deviations: published code of the baseline (FT-clean, `FT.py` of
TGA-ZSR, arXiv:2410.21802) uses an in-batch symmetric loss, here `contrastive`; over all classes it is comparable with
TeCoA term by term.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ironclip.losses.classification import cross_entropy_loss
from ironclip.losses.contrastive import in_batch_loss
from ironclip.methods.base import Batch, Inner, Method, Pass, Teacher, Views, register_method
from ironclip.models.clip import CLIPModel


@register_method("clean")
@dataclass(frozen=True, kw_only=True)
class Clean(Method):
    """Text-guided cross-entropy on clean images: L = CE(s cos(f(x), T), y).

    Attributes:
        contrastive: Against the class prompts of the batch in both directions, as ft_adv; not against all classes.
    """

    contrastive: bool = False

    @property
    def needs(self) -> frozenset[Pass]:
        """The clean images."""
        return frozenset({Pass.STUDENT_CLEAN})

    @property
    def across_batch(self) -> bool:
        """Only as a contrastive loss, whose negatives are the other images of the batch."""
        return self.contrastive

    def adversaries(self, batch: Batch, model: CLIPModel, teacher: Teacher) -> Mapping[Literal["image", "text"], Inner]:
        """Return no inner problem."""
        return {}

    def loss(self, views: Views) -> Mapping[str, Tensor]:
        """Return the cross-entropy, or the contrastive loss, on clean images."""
        logits = views.logit_scale * views.student.clean.similarity
        if self.contrastive:
            return {"contrastive": in_batch_loss(logits, views.labels)}
        return {"ce": cross_entropy_loss(logits, views.labels)}
