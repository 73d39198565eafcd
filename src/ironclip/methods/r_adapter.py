"""R-Adapter: linear adapters in both towers for robustness to distribution shift; no adversary.

Source: Kim et al., ECCV 2024, arXiv:2408.05749, and its published commands; its model code was not to be had. The
adapters: `models.adapters`; the loss, MPM-NCE: `losses.contrastive.mpm_nce_loss`, over each image and a text of its
class in a template drawn for the sample and epoch, or its caption; images and texts of a class belong together. After
every step W~ <- m W~ + (1 - m) W; W~ is evaluated, scaled: W_org (scale W~ + I).

Our reading: full maps by default (the paper's count of 20.5 million is theirs; its command for ImageNet has rank 128);
one draw of the dropping a sample and adapter; the mean in place of the sum over the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ironclip.errors import ConfigError
from ironclip.losses.contrastive import mpm_nce_loss
from ironclip.methods.base import Batch, Inner, Method, Pass, Teacher, Views, register_method
from ironclip.models.adapters import Adapters, rescaled
from ironclip.models.clip import CLIPModel
from ironclip.models.tuning import Tunable


@register_method("r_adapter")
@dataclass(frozen=True, kw_only=True)
class RAdapter(Method):
    """MPM-NCE over adapters that the weights can swallow.

    Attributes:
        rank: Of each map, or none for full ones.
        drop: Probability that a sample passes an adapter by in training (p in the paper).
        decay: Share that the running average keeps a step (m in the paper).
        test_scale: Of the averaged maps when they are evaluated and saved (alpha in the paper).
        smoothing: Share of the target that goes to negatives (epsilon in the paper).
        margin: Handicap of the negatives, in cosines (delta in the paper).
        temperature: Divisor of cosines (tau in the paper).
    """

    rank: int | None = None
    drop: float = 0.2
    decay: float = 0.999
    test_scale: float = 0.5
    smoothing: float = 0.02
    margin: float = 0.05
    temperature: float = 0.01

    trains = Tunable.ADAPTERS
    reads_classes = False

    def __post_init__(self) -> None:
        for name in ("drop", "decay", "smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"method.{name} is {getattr(self, name)}.", "Give a share from 0 up to, not with, 1.")
        for name in ("test_scale", "temperature"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"method.{name} is {getattr(self, name)}.", "Give a positive factor.")

    def attach(self, model: CLIPModel, templates: Sequence[str], seed: int) -> None:
        """Put adapters into both towers."""
        adapters = Adapters.drawn(model, self.rank, seed)
        adapters.drop = self.drop
        model.attach(adapters)

    @property
    def average(self) -> float:
        """The share that the running average keeps."""
        return self.decay

    def at_test(self, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the averages, scaled."""
        return {name: rescaled(name, parameter, self.test_scale) for name, parameter in parameters.items()}

    @property
    def across_batch(self) -> bool:
        """Images are compared with the texts of others."""
        return True

    @property
    def draws_templates(self) -> bool:
        """Texts come in any of the templates."""
        return True

    @property
    def needs(self) -> frozenset[Pass]:
        """The images and their texts."""
        return frozenset({Pass.STUDENT_CLEAN, Pass.STUDENT_TEXT})

    def adversaries(self, batch: Batch, model: CLIPModel, teacher: Teacher) -> Mapping[Literal["image", "text"], Inner]:
        """Return none."""
        return {}

    def loss(self, views: Views) -> Mapping[str, Tensor]:
        """Return MPM-NCE."""
        similarity = views.student.clean.features @ views.student.text.features.T
        settings = {"temperature": self.temperature, "smoothing": self.smoothing, "margin": self.margin}
        return {"mpm_nce": mpm_nce_loss(similarity, views.positives, **settings)}
