"""FARE: keep the embedding of an attacked image where the original model puts the clean one.

Source: Schlarmann et al., ICML 2024, arXiv:2402.12336, equation 3; the clean term is the published code's
`clean_weight`. Deviations: none; the code always takes OpenAI's weights as the original, ours those it starts from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ironclip.attacks.objectives import EmbeddingDistance
from ironclip.errors import ConfigError
from ironclip.losses.embedding import squared_distance_loss
from ironclip.methods.base import Batch, Inner, Method, Pass, Teacher, Views, register_method
from ironclip.models.clip import CLIPModel


@register_method("fare")
@dataclass(frozen=True, kw_only=True)
class Fare(Method):
    """Reads neither labels nor texts, so any folder of images will do.

    Attributes:
        clean_weight: Share w of the clean term in (1 - w) |f(x + d) - f0(x)|^2 + w |f(x) - f0(x)|^2; 0 as published.
    """

    clean_weight: float = 0.0

    reads_classes = False

    def __post_init__(self) -> None:
        if not 0 <= self.clean_weight < 1:
            raise ConfigError(f"method.clean_weight is {self.clean_weight}.", "Give a share from 0 up to, not with, 1.")

    @property
    def needs(self) -> frozenset[Pass]:
        """The attacked images and the teacher's clean ones; with a clean term the clean images too."""
        needs = frozenset({Pass.STUDENT_ADV, Pass.TEACHER_CLEAN})
        return needs | {Pass.STUDENT_CLEAN} if self.clean_weight else needs

    def adversaries(self, batch: Batch, model: CLIPModel, teacher: Teacher) -> Mapping[Literal["image", "text"], Inner]:
        """Maximise the distance from where the teacher puts the clean image."""
        return {"image": Inner(EmbeddingDistance(model, teacher.embedding(batch)))}

    def loss(self, views: Views) -> Mapping[str, Tensor]:
        """Return the squared distance of attacked (and clean) images from the teacher's clean embedding."""
        # Raw embeddings, as published: between unit rows the norm would be free to drift.
        target = views.teacher.clean.embedding
        terms = {"embedding": (1 - self.clean_weight) * squared_distance_loss(views.student.adv.embedding, target)}
        if self.clean_weight:
            terms["clean"] = self.clean_weight * squared_distance_loss(views.student.clean.embedding, target)
        return terms
