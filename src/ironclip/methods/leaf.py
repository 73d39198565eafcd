"""LEAF: FARE for the text tower. Keep the embedding of an edited text where the original model puts the clean one.

Source: Abad Rocamora et al., NeurIPS 2025, arXiv:2506.03355, and its code (LIONS-EPFL/LEAF). With g0 the original,

    L = |g(S') - g0(S)|^2,   S' maximises L within k character edits.

The text adversary is LEAF's own search with 50 places and 50 symbols unless the recipe names another (`text_attack`;
"charmer" is the search of its evaluations). The image tower is not touched: robust images come from a tower that FARE
has tuned. Texts are captions, or the class prompts of labelled images.
Deviations: the original is the model that the run starts from, kept apart before anything is resumed (the published
code copies it afterwards); those of the search stand in `attacks/text/characters.py`, those of its rule on new words
in `attacks/text/constraints.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ironclip.attacks.text.objectives import TextDistance
from ironclip.losses.embedding import squared_distance_loss
from ironclip.methods.base import Batch, Inner, Method, Pass, Teacher, Views, register_method
from ironclip.models.clip import CLIPModel
from ironclip.models.tuning import Tunable


@register_method("leaf")
@dataclass(frozen=True, kw_only=True)
class Leaf(Method):
    """Reads texts only; tunes the text tower.

    Attributes:
        normalise: Compare unit rows, in the attack too (`normalize_fare` of the code); raw embeddings as published.
    """

    normalise: bool = False

    trains = Tunable.TEXT
    reads_classes = False
    text_attack = {"name": "leaf", "edits": 1, "candidates": 50, "constraint": "leaf"}  # noqa: RUF012  # never changed

    @property
    def needs(self) -> frozenset[Pass]:
        """The attacked texts, and the clean ones as the teacher sees them."""
        return frozenset({Pass.STUDENT_TEXT_ADV, Pass.TEACHER_TEXT})

    def adversaries(self, batch: Batch, model: CLIPModel, teacher: Teacher) -> Mapping[Literal["image", "text"], Inner]:
        """Maximise the distance from where the teacher puts the clean text."""
        measure: Literal["unit_squared_l2", "squared_l2"] = "unit_squared_l2" if self.normalise else "squared_l2"
        return {"text": Inner(TextDistance(model, teacher.text_embedding(batch), measure))}

    def loss(self, views: Views) -> Mapping[str, Tensor]:
        """Return the squared distance of attacked texts from the teacher's clean embedding."""
        student, teacher = views.student.text_adv, views.teacher.text
        if self.normalise:
            return {"embedding": squared_distance_loss(student.features, teacher.features)}
        return {"embedding": squared_distance_loss(student.embedding, teacher.embedding)}
