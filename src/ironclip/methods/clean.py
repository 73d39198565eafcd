"""Clean fine-tuning: the baseline without an adversary.

Source: the cross-entropy over all class prompts that TeCoA minimises, on clean images (Mao et al., ICLR 2023,
arXiv:2212.07016, without the inner maximisation). Deviations: published code of the baseline uses an in-batch
symmetric loss; over all classes it is comparable with TeCoA term by term.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ironclip.losses.classification import cross_entropy_loss
from ironclip.methods.base import Batch, Inner, Method, Pass, Teacher, Views, register_method
from ironclip.models.clip import CLIPModel


@register_method("clean")
@dataclass(frozen=True, kw_only=True)
class Clean(Method):
    """Text-guided cross-entropy on clean images: L = CE(s cos(f(x), T), y)."""

    @property
    def needs(self) -> frozenset[Pass]:
        """The clean images."""
        return frozenset({Pass.STUDENT_CLEAN})

    def adversaries(self, batch: Batch, model: CLIPModel, teacher: Teacher) -> Mapping[Literal["image", "text"], Inner]:
        """Return no inner problem."""
        return {}

    def loss(self, views: Views) -> Mapping[str, Tensor]:
        """Return the cross-entropy on clean images."""
        return {"ce": cross_entropy_loss(views.logit_scale * views.student.clean.similarity, views.labels)}
