"""TeCoA's visual prompts: its loss, with a learned frame of pixels and learned tokens in place of the image tower.

Source: Mao et al., ICLR 2023, arXiv:2212.07016, and `visual_prompt.py` of its published code. Deviations: the tokens
and their positions, which the code adds up, are one parameter; the attack's gradients never reach the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ironclip.errors import ConfigError
from ironclip.losses.classification import cross_entropy_loss
from ironclip.methods.base import Batch, Inner, Method, Pass, Teacher, Views, misclassify, register_method
from ironclip.models.clip import CLIPModel
from ironclip.models.prompts import FreePrompts, drawn_layers, image_width
from ironclip.models.tuning import Tunable
from ironclip.models.visual_prompt import PUBLISHED_WIDTH, PixelFrame


@register_method("tecoa_vp")
@dataclass(frozen=True, kw_only=True)
class TeCoAVisualPrompt(Method):
    """CE(s cos(f(x + d), T), y) over frame and tokens, both drawn from N(0, 1).

    Attributes:
        frame: Width of the frame in pixels of the model's input, 0 for none; 30 of 224, as published, where absent.
        tokens: How many tokens stand behind the patches, 0 for none.
    """

    frame: int | None = None
    tokens: int = 100

    trains = Tunable.PROMPTS

    def __post_init__(self) -> None:
        if self.tokens < 0 or (self.frame is not None and self.frame < 0) or (self.tokens, self.frame) == (0, 0):
            raise ConfigError(
                f"method.frame is {self.frame} and method.tokens is {self.tokens}: nothing to tune.",
                "Give a frame, or tokens, or both.",
            )

    def attach(self, model: CLIPModel, templates: Sequence[str], seed: int) -> None:
        """Put the frame around the images and the tokens behind their patches."""
        side = model.input_resolution
        width = round(PUBLISHED_WIDTH * side) if self.frame is None else self.frame
        tokens = drawn_layers(1 if self.tokens else 0, self.tokens, image_width(model), seed, "image", std=1.0)
        model.attach(FreePrompts(image=tokens, frame=PixelFrame.drawn(side, width, seed) if width else None))

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
