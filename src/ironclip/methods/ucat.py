"""UCAT: the attacked image keeps both the class structure and the amount of evidence that the original saw in it.

Source: Lu et al., ICML 2026, arXiv:2512.12997, and its published code. Cosines are read as the concentrations of a
Dirichlet distribution over the classes, a_k = exp((cos_k + 1) / t), t = 0.07; a of the student on x + d, b of the
original on x:

    L = CE(s cos(f(x + d), T), y) + l KL(Dir(a) || Dir(b)),   l = 1e5 / (1 + exp(2 / t)),   d maximises the first term.

Deviations: the divergence is computed in float64 and without cancellation, the code's float32 form loses it among
values of ln Gamma up to 1e12; `variant: code` adds the code's 1e-6 to every concentration, and differs in nothing else.

Where evidence is large, as it is at t = 0.07, the divergence is b0 KL(b / b0 || a / a0), a distillation of softmax(cos
/ t) that weighs each image by the original's evidence b0; the terms of the loss show this part apart from the rest.
`divergence: evidence` minimises it alone, and `divergence: softmax` the same divergence of the shares without weights,
the paper's ablation; its direction and its weight of 1 are our reading. Uncertainties: `losses.uncertainty`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ironclip.errors import ConfigError
from ironclip.losses.classification import cross_entropy_loss
from ironclip.losses.dirichlet import beyond_evidence, concentration, evidence_kl
from ironclip.losses.divergence import kl_divergence_loss
from ironclip.methods.base import Batch, Inner, Method, Pass, Teacher, Views, misclassify, register_method
from ironclip.models.clip import CLIPModel


@register_method("ucat")
@dataclass(frozen=True, kw_only=True)
class UCAT(Method):
    """TeCoA's cross-entropy, and the divergence from the original's Dirichlet distribution on the clean image.

    Attributes:
        temperature: Divisor of cosines in the concentrations (tau' in the paper).
        weight: Of the divergence (lambda in the paper); None for the formula above, and for 1 with `softmax`.
        divergence: "dirichlet", or of the ablations "softmax" (shares only) or "evidence" (shares, weighted by b0).
        variant: "paper" or "code".
    """

    temperature: float = 0.07
    weight: float | None = None
    divergence: Literal["dirichlet", "softmax", "evidence"] = "dirichlet"
    variant: Literal["paper", "code"] = "paper"

    def __post_init__(self) -> None:
        if not 0.01 <= self.temperature < float("inf"):
            raise ConfigError(
                f"method.temperature is {self.temperature}.",
                "Give at least 0.01: concentrations of exp(2 / temperature) have to fit into numbers.",
            )
        if self.weight is not None and not 0 <= self.weight < float("inf"):
            raise ConfigError(f"method.weight is {self.weight}.", "Give a weight of at least 0, or null.")

    @property
    def needs(self) -> frozenset[Pass]:
        """The attacked images, and the teacher's clean ones."""
        return frozenset({Pass.STUDENT_ADV, Pass.TEACHER_CLEAN})

    @property
    def divergence_weight(self) -> float:
        """The weight in use."""
        if self.weight is not None:
            return self.weight
        return 1.0 if self.divergence == "softmax" else 1e5 / (1 + math.exp(2 / self.temperature))

    def adversaries(self, batch: Batch, model: CLIPModel, teacher: Teacher) -> Mapping[Literal["image", "text"], Inner]:
        """Maximise the cross-entropy alone."""
        return {"image": misclassify(self.name, batch, model)}

    def loss(self, views: Views) -> Mapping[str, Tensor]:
        """Return the cross-entropy on attacked images and the weighted divergence, its two parts apart."""
        student, original = views.student.adv.similarity, views.teacher.clean.similarity
        terms = {"ce": cross_entropy_loss(views.logit_scale * student, views.labels)}
        if self.divergence == "softmax":
            kl = kl_divergence_loss(original / self.temperature, student / self.temperature)
            return terms | {"softmax_kl": self.divergence_weight * kl}
        a, b = self._concentration(student), self._concentration(original)
        terms["evidence_kl"] = self.divergence_weight * evidence_kl(a, b).mean()
        if self.divergence == "dirichlet":
            terms["beyond_evidence"] = self.divergence_weight * beyond_evidence(a, b).mean()
        return terms

    def _concentration(self, similarity: Tensor) -> Tensor:
        read = concentration(similarity, self.temperature)
        return read + 1e-6 if self.variant == "code" else read
