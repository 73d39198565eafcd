"""Comp-TGA: TGA-ZSR with maps that are dark where the image looks like the text of what its class is not.

Source: arXiv:2603.18598 (TPAMI 2026), and its code (zhyblue424/TGA-ZSR). The map of TGA-ZSR becomes
M(x, t) (1 - M(x, n)), with n the negative text of the true class; A and B are larger. The attack, `variant` and
deviations are TGA-ZSR's. The code's antialiasing changes nothing where a map is enlarged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ironclip.data.classes import fill_templates
from ironclip.methods.base import ModelViews, Views, register_method
from ironclip.methods.tga_zsr import TGAZSR


@register_method("comp_tga")
@dataclass(frozen=True, kw_only=True)
class CompTGA(TGAZSR):
    """TGA-ZSR with complementary maps.

    Attributes:
        adv_map_weight: Of the attacked image's map (A), at 224 pixels.
        clean_map_weight: Of the clean image's map (B), at 224 pixels.
        negative_template: What the class is not.
    """

    adv_map_weight: float = 0.10
    clean_map_weight: float = 0.07
    negative_template: str = "This is not a photo of a {}"

    def __post_init__(self) -> None:
        super().__post_init__()
        fill_templates("class", [self.negative_template])

    @property
    def extra_templates(self) -> Mapping[str, Sequence[str]]:
        """The negative prompts."""
        return {"negative": (self.negative_template,)}

    def attention(self, views: Views, model: ModelViews, view: Literal["clean", "adv"]) -> Tensor:
        """Return one model's maps for the true classes, without what looks like their negative texts."""
        negative = self._map(views, model, view, views.class_weights("negative"))
        return super().attention(views, model, view) * (1 - negative)
