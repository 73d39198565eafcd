"""PMG-AFT: the frozen original sees the attacked images too, and guides what the student says of them.

Source: Wang et al., CVPR 2024, arXiv:2401.04350. With P = softmax(s cos(f(.), T)) of the student, P0 of the original,

    L = CE(P(x + d), y) + a KL(P0(x + d) || P(x + d)) + b KL(P(x) || P(x + d)),   d maximises the first term.

Deviations: the original in place of P0 is that which the run starts from; P(x) is a target without gradient.
`general: feature` takes the paper's abstract at its word ("minimizes the distance between the features of adversarial
examples in the target model and those in the pre-trained model"): |f(x + d) - f0(x + d)|^2 of raw embeddings in place
of the first divergence; which distance is our reading.
`variant: code` is the published code: cosines are not scaled (s = 1, in the attack too), divergences are summed over
the batch, pixels are normalised with ImageNet's statistics, and gradients flow into P(x). The re-implementation in
AGFT's code is the paper form with `detach_clean: false`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from ironclip.errors import ConfigError
from ironclip.losses.classification import cross_entropy_loss
from ironclip.losses.divergence import kl_divergence
from ironclip.losses.embedding import squared_distance_loss
from ironclip.methods.base import Batch, Inner, Method, Pass, Teacher, Views, misclassify, register_method
from ironclip.models.clip import CLIPModel
from ironclip.models.preprocessing import Preprocessing

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@register_method("pmg_aft")
@dataclass(frozen=True, kw_only=True)
class PMGAFT(Method):
    """TeCoA's cross-entropy, with a branch to the original model and one to the clean prediction.

    Attributes:
        general: What the original model guides: the "prediction" on attacked images, or their "feature".
        general_weight: Of that branch (alpha in the paper).
        clean_weight: Of the divergence from the clean prediction (beta in the paper).
        kl_direction: KL(target || prediction), "target_first" as in both published codes; or "student_first".
        detach_clean: Whether the clean prediction is a target without gradient; None for what the variant does.
        variant: "paper" or "code".
    """

    general: Literal["prediction", "feature"] = "prediction"
    general_weight: float = 1.0
    clean_weight: float = 1.0
    kl_direction: Literal["target_first", "student_first"] = "target_first"
    detach_clean: bool | None = None
    variant: Literal["paper", "code"] = "paper"

    def __post_init__(self) -> None:
        for name in ("general_weight", "clean_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"method.{name} is {getattr(self, name)}.", "Give a weight of at least 0.")

    @property
    def needs(self) -> frozenset[Pass]:
        """Both views of the student, and the teacher's view of the attacked images."""
        return frozenset({Pass.STUDENT_CLEAN, Pass.STUDENT_ADV, Pass.TEACHER_ADV})

    @property
    def across_batch(self) -> bool:
        """The sums of the published code grow with the batch."""
        return self.variant == "code"

    def preprocessing(self, own: Preprocessing) -> Preprocessing:
        """Return ImageNet's statistics where the published code has them."""
        return own if self.variant == "paper" else replace(own, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    def adversaries(self, batch: Batch, model: CLIPModel, teacher: Teacher) -> Mapping[Literal["image", "text"], Inner]:
        """Maximise the cross-entropy alone."""
        return {"image": misclassify(self.name, batch, model, logit_scale=1.0 if self.variant == "code" else None)}

    def loss(self, views: Views) -> Mapping[str, Tensor]:
        """Return the cross-entropy on attacked images and both branches, weighted."""
        scale = views.logit_scale if self.variant == "paper" else 1.0
        student, clean = scale * views.student.adv.similarity, scale * views.student.clean.similarity
        detach = self.variant == "paper" if self.detach_clean is None else self.detach_clean
        if self.general == "feature":
            general = squared_distance_loss(views.student.adv.embedding, views.teacher.adv.embedding)
        else:
            general = self._divergence(scale * views.teacher.adv.similarity, student)
        return {
            "ce": cross_entropy_loss(student, views.labels),
            "general": self.general_weight * general,
            "clean": self.clean_weight * self._divergence(clean.detach() if detach else clean, student),
        }

    def _divergence(self, target: Tensor, student: Tensor) -> Tensor:
        first, second = (target, student) if self.kl_direction == "target_first" else (student, target)
        rows = kl_divergence(first, second)
        return rows.mean() if self.variant == "paper" else rows.sum()
