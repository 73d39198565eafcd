"""Sim-CLIP: pull the embeddings of attacked and clean images together by their cosine, with stop-gradients.

Source: Hossain and Imteaj, arXiv:2407.14971, and its code (speedlab-git/SimCLIP). With r = f(x + d) and sg the
stop-gradient, L = -cos(r, sg c)/2 - cos(c, sg r)/2, where the `target` c is

    frozen  f0(x), the original model: what the code does, and so the default. Its second half has no gradient, which
            leaves half of that of -cos(r, f0(x)).
    self    f(x), the trained model: the Siamese form of the paper, as a published summary quotes it.
    both    half of each of the two, ours.

The attack moves f(x + d) away from f0(x) in squared L2 for every target, as in the code. Deviations: the frozen model
is the one that the run starts from, in the code always OpenAI's; a run that has lost its direction is stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ironclip.attacks.objectives import EmbeddingDistance
from ironclip.errors import RunFailedError
from ironclip.losses.embedding import cosine_loss, stopped_cosine_loss
from ironclip.methods.base import Batch, Inner, Method, Pass, Teacher, Views, register_method
from ironclip.models.clip import CLIPModel

LOST = 0.2
"""Below this mean cosine of clean embeddings with the original model's, texts no longer fit the images."""


@register_method("sim_clip")
@dataclass(frozen=True, kw_only=True)
class SimCLIP(Method):
    """Reads neither labels nor texts.

    Attributes:
        target: Whose clean embedding the attacked one is compared with: "frozen", "self" or "both".
    """

    target: Literal["frozen", "self", "both"] = "frozen"

    reads_classes = False

    @property
    def needs(self) -> frozenset[Pass]:
        """The attacked images, and the clean ones as the target's model sees them."""
        clean = {"frozen": {Pass.TEACHER_CLEAN}, "self": {Pass.STUDENT_CLEAN}}
        return frozenset({Pass.STUDENT_ADV}).union(*(clean[target] for target in self._targets))

    @property
    def _targets(self) -> tuple[str, ...]:
        return ("frozen", "self") if self.target == "both" else (self.target,)

    def adversaries(self, batch: Batch, model: CLIPModel, teacher: Teacher) -> Mapping[Literal["image", "text"], Inner]:
        """Maximise the distance from where the teacher puts the clean image."""
        return {"image": Inner(EmbeddingDistance(model, teacher.embedding(batch)))}

    def loss(self, views: Views) -> Mapping[str, Tensor]:
        """Return the cosine loss against each target, their mean in all."""
        terms = {}
        for target in self._targets:
            clean = views.teacher.clean if target == "frozen" else views.student.clean
            terms[target] = stopped_cosine_loss(views.student.adv.embedding, clean.embedding) / len(self._targets)
        return terms

    def watch(self, batch: Batch, model: CLIPModel, teacher: Teacher) -> Mapping[str, float]:
        """Return the mean cosine of clean embeddings with the teacher's.

        Without the teacher in the loss nothing holds the embeddings where the texts are, and the published learning
        rate is a hundred times FARE's.

        Raises:
            RunFailedError: It is below 0.2.
        """
        with torch.no_grad():
            cosine = -cosine_loss(model.embed_image(batch.pixels), teacher.embedding(batch)).item()
        if cosine < LOST:
            raise RunFailedError(
                f"clean embeddings have lost those of the original model: mean cosine {cosine:.2f}, below {LOST}.",
                "Lower optimisation.lr (1e-5 instead of the published 1e-3), or use method.target: frozen.",
            )
        return {"teacher_cosine": cosine}
