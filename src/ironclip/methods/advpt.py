"""AdvPT: learn the words before the class name on embeddings that an attack without labels and texts has moved.

Source: Zhang et al., ECCV 2024, arXiv:2311.11261, and its published code. With softmax over the embedding axis,

    d maximises KL(softmax(f0(x)) || softmax(f0(x + d))),   L = CE(s cos(f0(x + d), g(t(.))), y).

The image tower is never tuned, so a sample's attacked embedding is the same all the run: the published code keeps a
bank of them, ours draws every attack of a sample alike and finds it again. Deviations: the start is drawn from
[-eps, eps], published from [0, eps]; nothing is stored, so nothing stale is read where eps or weights change. Its test
attack is this one too, label-free and not aimed at the learned words: such figures say less than those of apt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ironclip.attacks.objectives import EmbeddingDistance, Evaluation
from ironclip.losses.classification import cross_entropy_loss
from ironclip.losses.divergence import kl_divergence
from ironclip.methods.base import Batch, Inner, Method, Pass, Teacher, Views, register_method
from ironclip.models.clip import CLIPModel
from ironclip.models.prompts import FreePrompts, check_length, drawn_layers, text_width
from ironclip.models.tuning import Tunable


@dataclass(frozen=True)
class EmbeddingDivergence(EmbeddingDistance):
    """Push the embedding away from `target`: divergence of the softmaxed embeddings, target first."""

    def evaluate(self, pixels: Tensor) -> Evaluation:
        """Return the divergence; nothing is ever broken."""
        value = kl_divergence(self.target, self.model.embed_image(pixels))
        return Evaluation(value, torch.zeros_like(value, dtype=torch.bool))


@register_method("advpt")
@dataclass(frozen=True, kw_only=True)
class AdvPT(Method):
    """Cross-entropy over a few learned words, on a fixed attacked embedding a sample.

    Attributes:
        length: How many words are learned (M).
    """

    length: int = 32

    trains = Tunable.PROMPTS

    def attach(self, model: CLIPModel, templates: Sequence[str], seed: int) -> None:
        """Put the words before every class name, in place of the templates."""
        check_length(model, self.length)
        model.attach(FreePrompts(drawn_layers(1, self.length, text_width(model), seed, "text"), words=("", ".")))

    @property
    def attack_scope(self) -> Literal["epoch", "run"]:
        """A sample is attacked alike in every epoch."""
        return "run"

    @property
    def needs(self) -> frozenset[Pass]:
        """The attacked images."""
        return frozenset({Pass.STUDENT_ADV})

    def adversaries(self, batch: Batch, model: CLIPModel, teacher: Teacher) -> Mapping[Literal["image", "text"], Inner]:
        """Maximise the divergence of the embedding from the clean one."""
        return {"image": Inner(EmbeddingDivergence(model, teacher.embedding(batch)))}

    def loss(self, views: Views) -> Mapping[str, Tensor]:
        """Return the cross-entropy on attacked images."""
        return {"ce": cross_entropy_loss(views.logit_scale * views.student.adv.similarity, views.labels)}
