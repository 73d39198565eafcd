"""CAPT (a reconstruction): prompts in both towers, consistent with the clean prediction and with the original model.

Source: Yang et al., arXiv:2405.11154, as a published summary quotes its equations; neither the paper nor its code was
read, so results are those of "CAPT (reconstructed)". With P the student's prediction, P0 the original's,

    L = CE(P(x), y) + w [(1 - a) KL(P(x) || P(x + d)) + a KL(P0(x) || P(x + d))],   d maximises CE(P(x + d), y).

Our reading: both targets come first and carry no gradient; the cross-entropy is on clean images (`ce_on: adv` for the
other); a is the mean probability that the original gives the true class on the clean batch; w = 1; the attack; and free
prompts in each layer of both towers, the first words those of the template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ironclip.errors import ConfigError
from ironclip.losses.classification import cross_entropy_loss
from ironclip.losses.divergence import kl_divergence_loss
from ironclip.methods.base import Batch, Inner, Method, Pass, Teacher, Views, misclassify, register_method
from ironclip.models.clip import CLIPModel
from ironclip.models.prompts import (
    FreePrompts,
    check_length,
    drawn_layers,
    image_width,
    prompt_depth,
    text_width,
    words_of_template,
)
from ironclip.models.tuning import Tunable


@register_method("capt")
@dataclass(frozen=True, kw_only=True)
class CAPT(Method):
    """Cross-entropy and two consistency terms, over a few learned words and tokens a layer; a reconstruction.

    Attributes:
        consistency_weight: w (lambda in the paper).
        original_share: a (alpha_cons in the paper); from the original's reliability on the batch where absent.
        ce_on: Which images the cross-entropy is of.
        length: Words of the text, and tokens of the image, a layer.
        depth: Layers that are prompted, at most those of the shorter tower.
    """

    consistency_weight: float = 1.0
    original_share: float | None = None
    ce_on: Literal["clean", "adv"] = "clean"
    length: int = 2
    depth: int = 9

    trains = Tunable.PROMPTS

    def __post_init__(self) -> None:
        if not 0 <= self.consistency_weight < float("inf"):
            raise ConfigError(
                f"method.consistency_weight is {self.consistency_weight}.", "Give a weight of at least 0."
            )
        if self.original_share is not None and not 0 <= self.original_share <= 1:
            raise ConfigError(f"method.original_share is {self.original_share}.", "Give a share from 0 to 1.")
        if self.depth < 1:
            raise ConfigError(f"method.depth is {self.depth}.", "Give at least 1 layer.")

    @property
    def across_batch(self) -> bool:
        """The share of the original is a mean over the batch, unless it is given."""
        return self.original_share is None

    def attach(self, model: CLIPModel, templates: Sequence[str], seed: int) -> None:
        """Put free prompts into both towers."""
        check_length(model, self.length)
        first, words = words_of_template(model, (*templates, "a photo of a {}.")[0], self.length)
        depth = prompt_depth(model, self.depth)
        text = [first, *drawn_layers(depth - 1, self.length, text_width(model), seed, "text")]
        model.attach(FreePrompts(text, drawn_layers(depth, self.length, image_width(model), seed, "image"), words))

    @property
    def needs(self) -> frozenset[Pass]:
        """Clean and attacked images, and the original's view of the clean ones."""
        return frozenset({Pass.STUDENT_CLEAN, Pass.STUDENT_ADV, Pass.TEACHER_CLEAN})

    def adversaries(self, batch: Batch, model: CLIPModel, teacher: Teacher) -> Mapping[Literal["image", "text"], Inner]:
        """Maximise the cross-entropy."""
        return {"image": misclassify(self.name, batch, model)}

    def loss(self, views: Views) -> Mapping[str, Tensor]:
        """Return the cross-entropy and both consistency terms, weighted."""
        scale = views.logit_scale
        clean, adv = scale * views.student.clean.similarity, scale * views.student.adv.similarity
        original = (scale * views.teacher.clean.similarity).detach()
        share = self._share(original, views.labels)
        return {
            "ce": cross_entropy_loss(clean if self.ce_on == "clean" else adv, views.labels),
            "clean": self.consistency_weight * (1 - share) * kl_divergence_loss(clean.detach(), adv),
            "original": self.consistency_weight * share * kl_divergence_loss(original, adv),
        }

    def _share(self, original: Tensor, labels: Tensor) -> Tensor | float:
        if self.original_share is not None:
            return self.original_share
        return torch.softmax(original, dim=1).gather(1, labels[:, None]).mean()
