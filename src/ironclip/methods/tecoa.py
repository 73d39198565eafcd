"""TeCoA: adversarial training of the image tower against the classifier that the text tower makes of class prompts.

Source: Mao et al., ICLR 2023, arXiv:2212.07016, equations 2 to 4. Deviations: none in the loss; the attack's
gradients never reach the parameters (in the published code they are added to them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ironclip.losses.classification import cross_entropy_loss
from ironclip.methods.base import Batch, Inner, Method, Pass, Teacher, Views, misclassify, register_method
from ironclip.models.clip import CLIPModel


@register_method("tecoa")
@dataclass(frozen=True, kw_only=True)
class TeCoA(Method):
    """min over the image tower of max over d of CE(s cos(f(x + d), T), y), over all class prompts T, text frozen."""

    @property
    def needs(self) -> frozenset[Pass]:
        """The attacked images."""
        return frozenset({Pass.STUDENT_ADV})

    def adversaries(self, batch: Batch, model: CLIPModel, teacher: Teacher) -> Mapping[Literal["image", "text"], Inner]:
        """Maximise the same cross-entropy."""
        return {"image": misclassify(self.name, batch, model)}

    def loss(self, views: Views) -> Mapping[str, Tensor]:
        """Return the cross-entropy on attacked images."""
        return {"ce": cross_entropy_loss(views.logit_scale * views.student.adv.similarity, views.labels)}
