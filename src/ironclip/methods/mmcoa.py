"""MMCoA: attack images and texts, and align each attacked side with the clean other one.

Source: Zhou et al., arXiv:2404.19287, and its code (ElleZWQ/MMCoA). An item of a batch is an image x with the prompt t
of its class. With u and w the unit embeddings of images and texts and N(u, w) the sum of InfoNCE in both directions,

    L = a N(u(x + d), w(t)) + b N(u(x), w(t')),   a = b = 1/2.

d maximises the cross-entropy over all class prompts; t' changes one word of the prompt so that its embedding moves
away from that of t (KL between softmaxes of the two unit embeddings). Each is found with the other side clean, against
the model as it is. The other items of a batch are negatives, those of the same class too, as published;
`multi_positive` counts them as positives instead, which is ours.

There is no `variant` here: the paper's own text was not read, and what its code does beyond the above is either refused
(gradients of the attack that stay in the update) or a setting of the text attack (`variant` of bert_attack). Unless the
recipe names `text_attack: {name: bert_attack, language_model: ...}`, words come from the bundled table of synonyms.
Deviations: the logit scale is not tuned; random starts lie on both sides of a pixel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ironclip.attacks.text.objectives import TextDistance
from ironclip.errors import ConfigError
from ironclip.losses.contrastive import pair_losses, shared_pair_losses
from ironclip.methods.base import Batch, Inner, Method, Pass, Teacher, Views, misclassify, register_method
from ironclip.models.clip import CLIPModel
from ironclip.models.tuning import Tunable


@register_method("mmcoa")
@dataclass(frozen=True, kw_only=True)
class MMCoA(Method):
    """Both towers, each against the other's clean side. A weight of 0 leaves a half and its adversary out.

    Attributes:
        image_weight: Of attacked images with clean texts (a above).
        text_weight: Of clean images with attacked texts (b above).
        multi_positive: All texts of an image's class in the batch are right for it, not its own alone.
    """

    image_weight: float = 0.5
    text_weight: float = 0.5
    multi_positive: bool = False

    trains = Tunable.BOTH
    text_attack = {"name": "synonyms", "words": 1}  # noqa: RUF012  # never changed

    def __post_init__(self) -> None:
        for name in ("image_weight", "text_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"method.{name} is {getattr(self, name)}.", "Give a weight of at least 0.")
        if not self.image_weight and not self.text_weight:
            raise ConfigError("method.image_weight and method.text_weight are both 0.", "Leave one half of the loss.")

    @property
    def needs(self) -> frozenset[Pass]:
        """Of each half the attacked side and the clean other one."""
        image = {Pass.STUDENT_ADV, Pass.STUDENT_TEXT} if self.image_weight else set()
        text = {Pass.STUDENT_CLEAN, Pass.STUDENT_TEXT_ADV} if self.text_weight else set()
        return frozenset(image | text)

    @property
    def across_batch(self) -> bool:
        """The other items of the batch are the negatives."""
        return True

    def adversaries(self, batch: Batch, model: CLIPModel, teacher: Teacher) -> Mapping[Literal["image", "text"], Inner]:
        """Maximise the cross-entropy over all classes, and the distance from the model's own clean text."""
        inner: dict[Literal["image", "text"], Inner] = {}
        if self.image_weight:
            inner["image"] = misclassify(self.name, batch, model)
        if self.text_weight:
            with torch.no_grad():
                inner["text"] = Inner(TextDistance(model, model.embed_text(batch.texts), "kl_softmax"))
        return inner

    def loss(self, views: Views) -> Mapping[str, Tensor]:
        """Return both halves, weighted."""
        student, terms = views.student, {}
        if self.image_weight:
            logits = views.logit_scale * student.adv.features @ student.text.features.T
            terms["image"] = self.image_weight * self._both_directions(logits, views)
        if self.text_weight:
            logits = views.logit_scale * student.clean.features @ student.text_adv.features.T
            terms["text"] = self.text_weight * self._both_directions(logits, views)
        return terms

    def _both_directions(self, logits: Tensor, views: Views) -> Tensor:
        if not self.multi_positive:
            return torch.stack(pair_losses(logits)).sum()
        return torch.stack(shared_pair_losses(logits, views.positives)).sum()
