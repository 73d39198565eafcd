"""FT-Adv: adversarial training with CLIP's own loss, each attacked image against the class prompts of its batch.

Source: the baseline of TGA-ZSR (Yu et al., NeurIPS 2024, arXiv:2410.21802) as its code runs it, `FT.py`. With
Z = s cos(f(x + d), T) over the B images and Y = Z[:, y] the B columns of their labels,

    L = CE(Y, (0 .. B-1))/2 + CE(Y^T, (0 .. B-1))/2.

Two images of one class have equal prompts and are yet each other's negatives, as published. The attack maximises the
cross-entropy over all classes, not this loss. Deviations: the attack's gradients never reach the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ironclip.losses.contrastive import in_batch_loss
from ironclip.methods.base import Batch, Inner, Method, Pass, Teacher, Views, misclassify, register_method
from ironclip.models.clip import CLIPModel


@register_method("ft_adv")
@dataclass(frozen=True, kw_only=True)
class FTAdv(Method):
    """In-batch contrastive loss of attacked images in both directions. `clean` with `contrastive` is FT-clean."""

    @property
    def needs(self) -> frozenset[Pass]:
        """The attacked images."""
        return frozenset({Pass.STUDENT_ADV})

    @property
    def across_batch(self) -> bool:
        """The other images of the batch are the negatives."""
        return True

    def adversaries(self, batch: Batch, model: CLIPModel, teacher: Teacher) -> Mapping[Literal["image", "text"], Inner]:
        """Maximise the cross-entropy over all classes."""
        return {"image": misclassify(self.name, batch, model)}

    def loss(self, views: Views) -> Mapping[str, Tensor]:
        """Return the contrastive loss of attacked images."""
        return {"contrastive": in_batch_loss(views.logit_scale * views.student.adv.similarity, views.labels)}
