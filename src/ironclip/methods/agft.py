"""AGFT: the original model's soft prediction on the clean image is the only target, calibrated, without labels.

Source: Cui et al., CVPR 2026, arXiv:2603.29410, and its published code. With s' the logit scale of training (180, that
is 1.8 times CLIP's) and gamma = 0.4,

    L = mean over the batch of -sum_c p_c log softmax(s' cos(f(x + d), T))_c,   p = softmax(gamma s' cos(f0(x), T)),

and d maximises the same with the same p. L is KL(p || .) up to the entropy of p. At test time the model's own scale
serves. Deviations: none in the loss; the rate rises as (t + 1) / W where the code's schedule begins at 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ironclip.attacks.objectives import LeavePrediction
from ironclip.errors import ConfigError, DataError
from ironclip.losses.classification import cross_entropy_loss
from ironclip.methods.base import Batch, ImageView, Inner, Method, Pass, Teacher, Views, register_method
from ironclip.models.clip import CLIPModel
from ironclip.models.zero_shot import FixedClasses


@register_method("agft")
@dataclass(frozen=True, kw_only=True)
class AGFT(Method):
    """Soft cross-entropy of attacked images against the original's calibrated prediction on the clean ones.

    Attributes:
        relative_scale: Logit scale of training as a multiple of the model's own; 1.8 makes the paper's 180 of CLIP.
        calibration: How much of that scale the target has (gamma in the paper); 1 does not calibrate.
    """

    relative_scale: float = 1.8
    calibration: float = 0.4

    def __post_init__(self) -> None:
        for name in ("relative_scale", "calibration"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"method.{name} is {getattr(self, name)}.", "Give a positive factor.")

    @property
    def needs(self) -> frozenset[Pass]:
        """The attacked images, and the teacher's clean ones."""
        return frozenset({Pass.STUDENT_ADV, Pass.TEACHER_CLEAN})

    def adversaries(self, batch: Batch, model: CLIPModel, teacher: Teacher) -> Mapping[Literal["image", "text"], Inner]:
        """Maximise the same cross-entropy against the same target."""
        if batch.class_weights is None:
            raise DataError('method "agft" needs class names.', "Use labelled data, or the method fare.")
        scale = self.relative_scale * model.logit_scale.detach()
        target = self._target(ImageView(teacher.embedding(batch), batch.class_weights), scale)
        classifier = FixedClasses(model, batch.class_weights, logit_scale=scale.item())
        return {"image": Inner(LeavePrediction(classifier, target))}

    def loss(self, views: Views) -> Mapping[str, Tensor]:
        """Return the soft cross-entropy on attacked images."""
        scale = self.relative_scale * views.logit_scale
        target = self._target(views.teacher.clean, scale)
        return {"soft_ce": cross_entropy_loss(scale * views.student.adv.similarity, target)}

    def _target(self, clean: ImageView, scale: Tensor) -> Tensor:
        """Return the calibrated prediction of the original model, `[B, C]`, without gradient."""
        return torch.softmax(self.calibration * scale * clean.similarity, dim=1).detach()
