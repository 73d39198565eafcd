"""R-Adapter's adapters tuned under attack: our own combination with the losses of TeCoA or FARE, not R-Adapter.

Source: the adapters are those of Kim et al., ECCV 2024, arXiv:2408.05749 (`models.adapters`), the losses those of
`methods.tecoa` and `methods.fare`. Nobody has published this; no adapter is dropped, averaged or scaled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ironclip.methods.base import Batch, Inner, Method, Pass, Teacher, Views, register_method
from ironclip.methods.fare import Fare
from ironclip.methods.tecoa import TeCoA
from ironclip.models.adapters import Adapters
from ironclip.models.clip import CLIPModel
from ironclip.models.tuning import Tunable


@register_method("adv_adapter")
@dataclass(frozen=True, kw_only=True)
class AdvAdapter(Method):
    """The loss of a method of the image tower, over adapters in both towers that the weights can swallow.

    Attributes:
        objective: "tecoa", or "fare", whose loss reaches the adapters of the image tower alone.
        rank: Of each map, or none for full ones.
    """

    objective: Literal["tecoa", "fare"] = "tecoa"
    rank: int | None = None

    trains = Tunable.ADAPTERS

    def attach(self, model: CLIPModel, templates: Sequence[str], seed: int) -> None:
        """Put adapters into both towers."""
        model.attach(Adapters.drawn(model, self.rank, seed))

    @property
    def needs(self) -> frozenset[Pass]:
        """What the method has that the loss is of."""
        return self._of.needs

    def adversaries(self, batch: Batch, model: CLIPModel, teacher: Teacher) -> Mapping[Literal["image", "text"], Inner]:
        """Return the inner problem of that method."""
        return self._of.adversaries(batch, model, teacher)

    def loss(self, views: Views) -> Mapping[str, Tensor]:
        """Return the loss of that method."""
        return self._of.loss(views)

    @property
    def _of(self) -> TeCoA | Fare:
        return TeCoA() if self.objective == "tecoa" else Fare()
