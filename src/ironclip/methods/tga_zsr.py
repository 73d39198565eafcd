"""TGA-ZSR: TeCoA that also keeps the map of where an image looks like its class where the original model had it.

Source: Yu et al., NeurIPS 2024, arXiv:2410.21802, and its code (zhyblue424/TGA-ZSR). With t the text of the true class
and F the projected patch tokens, M(x) = enlarged min-max of cos(F_p(x), t) over the patches p, and M0 the original
model's,

    L = CE(s cos(f(x + d), T), y) + A mean |M(x + d) - M0(x)|_2 + B mean |M(x) - M0(x)|_2.

The norms are over the pixels of maps as large as the model's input. They grow with its side r: A and B, given for 224
pixels, are multiplied by 224 / r. The attack maximises the cross-entropy.

`variant: code` is the published map: tokens of unit length along the token axis, the class token included, where a
cosine has unit rows. Deviations: a map without contrast is 0 everywhere, where the code divides by 0; the code's
ablations (Grad-CAM maps, other distances) are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ironclip.errors import ConfigError
from ironclip.losses.attention_map import attention_map, map_distance_loss, patch_cosines, token_axis_scores
from ironclip.losses.classification import cross_entropy_loss
from ironclip.methods.base import Batch, Inner, Method, ModelViews, Pass, Teacher, Views, misclassify, register_method
from ironclip.models.clip import CLIPModel

PUBLISHED_SIDE = 224
"""Side of the maps, in pixels, for which the weights are given."""


@register_method("tga_zsr")
@dataclass(frozen=True, kw_only=True)
class TGAZSR(Method):
    """Text-guided attention for zero-shot robustness; for vision transformers.

    Attributes:
        adv_map_weight: Of the attacked image's map (A; alpha in the code), at 224 pixels.
        clean_map_weight: Of the clean image's map (B; beta in the code), at 224 pixels.
        variant: The map is that of the "paper" (a cosine) or of the published "code".
    """

    adv_map_weight: float = 0.08
    clean_map_weight: float = 0.05
    variant: Literal["paper", "code"] = "paper"

    def __post_init__(self) -> None:
        for name in ("adv_map_weight", "clean_map_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"method.{name} is {getattr(self, name)}.", "Give a number of at least 0.")

    @property
    def needs(self) -> frozenset[Pass]:
        """The attacked images, and the patches of all maps; for the code's maps their class tokens too."""
        needs = {Pass.STUDENT_ADV, Pass.STUDENT_ADV_PATCHES, Pass.STUDENT_CLEAN_PATCHES, Pass.TEACHER_CLEAN_PATCHES}
        return frozenset(needs | {Pass.STUDENT_CLEAN, Pass.TEACHER_CLEAN} if self.variant == "code" else needs)

    def adversaries(self, batch: Batch, model: CLIPModel, teacher: Teacher) -> Mapping[Literal["image", "text"], Inner]:
        """Maximise the cross-entropy."""
        return {"image": misclassify(self.name, batch, model)}

    def loss(self, views: Views) -> Mapping[str, Tensor]:
        """Return the cross-entropy on attacked images, and both map terms."""
        adv, clean = self.attention(views, views.student, "adv"), self.attention(views, views.student, "clean")
        original = self.attention(views, views.teacher, "clean")
        per_pixel = PUBLISHED_SIDE / views.input_resolution
        return {
            "ce": cross_entropy_loss(views.logit_scale * views.student.adv.similarity, views.labels),
            "adv_map": self.adv_map_weight * per_pixel * map_distance_loss(adv, original),
            "clean_map": self.clean_map_weight * per_pixel * map_distance_loss(clean, original),
        }

    def attention(self, views: Views, model: ModelViews, view: Literal["clean", "adv"]) -> Tensor:
        """Return one model's maps for the true classes, `[B, side * side]`."""
        return self._map(views, model, view, views.class_weights())

    def _map(self, views: Views, model: ModelViews, view: Literal["clean", "adv"], classes: Tensor) -> Tensor:
        patches, text = model.clean_patches if view == "clean" else model.adv_patches, classes[views.labels]
        if self.variant == "paper":
            return attention_map(patch_cosines(patches, text), views.input_resolution)
        class_token = (model.clean if view == "clean" else model.adv).embedding
        tokens = torch.cat([class_token[:, None], patches], dim=1)
        return attention_map(token_axis_scores(tokens, text), views.input_resolution)
