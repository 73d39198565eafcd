"""FAP: prompts in both towers that keep predictions together under attack and push the image features apart.

Source: Zhou et al., NeurIPS 2024, arXiv:2403.14774, and its published code. With p = softmax(s cos(f(x), T)), q that
of x + d, v and v' the unit features of x and x + d,

    L = CE(s cos(f(x), T), y) + w mean over the batch of (cos(v, v') + 1) KL(p || q),   d maximises KL(p || q).

Gradients flow into p and v. The first words are those that the template begins with; the words after them stay. How the
towers' prompts hang together: `models.prompts.CoupledPrompts`. Deviations: the template is filled with the class name,
where the code leaves its braces in and puts the name behind it (`variant: code` does too).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ironclip.attacks.objectives import LeavePrediction
from ironclip.errors import ConfigError, DataError
from ironclip.losses.classification import cross_entropy_loss
from ironclip.losses.divergence import kl_divergence
from ironclip.methods.base import Batch, Inner, Method, Pass, Teacher, Views, register_method
from ironclip.models.clip import CLIPModel
from ironclip.models.prompts import (
    CoupledPrompts,
    check_length,
    drawn_layers,
    image_width,
    prompt_depth,
    words_of_template,
)
from ironclip.models.tuning import Tunable
from ironclip.models.zero_shot import FixedClasses


@register_method("fap")
@dataclass(frozen=True, kw_only=True)
class FAP(Method):
    """Clean cross-entropy and a consistency term, over a few learned words and tokens a layer.

    Attributes:
        consistency_weight: w (lambda_1 in the paper).
        length: Words of the text, and tokens of the image, a layer.
        depth: Layers that are prompted, at most those of the shorter tower.
        detach_clean: Whether p is a target without gradient.
        variant: "paper" or "code".
    """

    consistency_weight: float = 1.5
    length: int = 2
    depth: int = 9
    detach_clean: bool = False
    variant: Literal["paper", "code"] = "paper"

    trains = Tunable.PROMPTS

    def __post_init__(self) -> None:
        if not 0 <= self.consistency_weight < float("inf"):
            raise ConfigError(
                f"method.consistency_weight is {self.consistency_weight}.", "Give a weight of at least 0."
            )
        if self.depth < 1:
            raise ConfigError(f"method.depth is {self.depth}.", "Give at least 1 layer.")

    def attach(self, model: CLIPModel, templates: Sequence[str], seed: int) -> None:
        """Put coupled prompts into both towers."""
        check_length(model, self.length)
        context, (before, after) = words_of_template(model, (*templates, "a photo of a {}.")[0], self.length)
        words = (before, after) if self.variant == "paper" else (f"{before}{{}}{after} ", ".")
        depth, width = prompt_depth(model, self.depth), image_width(model)
        tokens = drawn_layers(depth - 1, self.length, width, seed, "image")
        model.attach(CoupledPrompts(context, tokens, width, seed, words))

    @property
    def needs(self) -> frozenset[Pass]:
        """Clean and attacked images."""
        return frozenset({Pass.STUDENT_CLEAN, Pass.STUDENT_ADV})

    def adversaries(self, batch: Batch, model: CLIPModel, teacher: Teacher) -> Mapping[Literal["image", "text"], Inner]:
        """Maximise the divergence from the student's own clean prediction."""
        if batch.class_weights is None:
            raise DataError('method "fap" needs class names.', "Use labelled data, or the method fare.")
        classifier = FixedClasses(model, batch.class_weights)
        with torch.no_grad():
            clean = torch.softmax(classifier.logits(batch.pixels), dim=1)
        return {"image": Inner(LeavePrediction(classifier, clean))}

    def loss(self, views: Views) -> Mapping[str, Tensor]:
        """Return the cross-entropy on clean images and the weighted consistency."""
        clean, adv = views.student.clean, views.student.adv
        clean_logits, logits = views.logit_scale * clean.similarity, views.logit_scale * adv.similarity
        divergence = kl_divergence(clean_logits.detach() if self.detach_clean else clean_logits, logits)
        aligned = F.cosine_similarity(clean.embedding, adv.embedding, dim=-1) + 1
        return {
            "ce": cross_entropy_loss(clean_logits, views.labels),
            "consistency": self.consistency_weight * (aligned * divergence).mean(),
        }
