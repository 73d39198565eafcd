"""APT: learn the words before the class name under attack, on towers that stay as they are.

Source: Li et al., CVPR 2024, arXiv:2403.01849, and its published code. With t(c) the text [words][name of c][.],

    L = CE(s cos(f(x + d), g(t(.))), y),   d maximises the same with the words as they are (strategy "on the fly").

The words are CoOp's, shared by all classes, the name at the end, drawn from N(0, 0.02^2). Deviations: the attack keeps
x + d in [0, 1], which the code only clips for its forward pass; it runs in every precision (the code's "amp" trains on
clean images); words of a class of its own and the strategies "constant" and "perturbed" are not offered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ironclip.losses.classification import cross_entropy_loss
from ironclip.methods.base import Batch, Inner, Method, Pass, Teacher, Views, misclassify, register_method
from ironclip.models.clip import CLIPModel
from ironclip.models.prompts import FreePrompts, check_length, drawn_layers, text_width
from ironclip.models.tuning import Tunable


@register_method("apt")
@dataclass(frozen=True, kw_only=True)
class APT(Method):
    """TeCoA's loss; what is tuned are a few words, so begin with a robust model.

    Attributes:
        length: How many words are learned (M in the paper).
    """

    length: int = 16

    trains = Tunable.PROMPTS

    def attach(self, model: CLIPModel, templates: Sequence[str], seed: int) -> None:
        """Put the words before every class name, in place of the templates."""
        check_length(model, self.length)
        model.attach(FreePrompts(drawn_layers(1, self.length, text_width(model), seed, "text"), words=("", ".")))

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
