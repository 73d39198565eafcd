"""What an adversary on texts maximises, and when it has won."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ironclip.attacks.objectives import CLASSIFICATION_LOSSES, Evaluation, is_correct
from ironclip.errors import ShapeError
from ironclip.losses.classification import margin
from ironclip.losses.divergence import kl_divergence
from ironclip.losses.embedding import squared_distance


class TextObjective(ABC):
    """A value a sample to be maximised over its text; samples do not know of each other.

    It is `attacks.objectives.Objective` with texts for pixels, and says the same `Evaluation` of them.
    """

    @abstractmethod
    def evaluate(self, texts: Sequence[str]) -> Evaluation:
        """Return value and success of one text a sample."""

    @abstractmethod
    def take(self, rows: Tensor) -> TextObjective:
        """Return the objective of the given samples, in that order (repeats allowed)."""

    def lengths_read(self, texts: Sequence[str]) -> list[int]:
        """Count the characters of each text that the model reads; edits beyond them change nothing."""
        return [len(text) for text in texts]

    @property
    def modules(self) -> Sequence[nn.Module]:
        """The modules that it runs, which an attack freezes and leaves as found."""
        return ()

    @property
    def device(self) -> torch.device:
        """Where the modules lie; the CPU where there are none."""
        for module in self.modules:
            for parameter in module.parameters():
                return parameter.device
        return torch.device("cpu")

    @property
    def tie_tolerance(self) -> float:
        """Values nearer than this are equal as far as float32 can tell."""
        return 0.0


def _unit(embedding: Tensor) -> Tensor:
    return F.normalize(embedding, dim=-1)


# In float64: the divergence of two nearly uniform distributions is a small difference of large terms.
MEASURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squared_l2": squared_distance,
    "unit_squared_l2": lambda embedding, target: squared_distance(_unit(embedding), _unit(target)),
    "kl_softmax": lambda embedding, target: kl_divergence(_unit(target).double(), _unit(embedding).double()),
    "cosine": lambda embedding, target: 1 - F.cosine_similarity(embedding.double(), target.double(), dim=-1),
}
Measure = Literal["squared_l2", "unit_squared_l2", "kl_softmax", "cosine"]


@dataclass(frozen=True)
class _OfModel(TextObjective):
    """What all objectives over a text tower share.

    Attributes:
        model: Has `embed_text(texts) -> [N, D]` and `tokenize(texts) -> [N, L]` (models.clip.CLIPModel).
    """

    model: Any

    @property
    def modules(self) -> Sequence[nn.Module]:
        """The model."""
        return (self.model,) if isinstance(self.model, nn.Module) else ()

    def lengths_read(self, texts: Sequence[str]) -> list[int]:
        """Count the characters before the tokenizer cuts a text off."""
        ids = self.model.tokenize(texts)
        cut = ids.argmax(dim=1) == ids.shape[1] - 1  # the end-of-text token, CLIP's largest id, is in the last place
        return [
            self._length_read(text, row) if full else len(text)
            for text, row, full in zip(texts, ids, cut.tolist(), strict=True)
        ]

    def _length_read(self, text: str, ids: Tensor) -> int:
        """Find the shortest beginning of a text that has the same ids, by bisection."""
        low, high = 0, len(text)
        while low < high:
            middle = (low + high) // 2
            if torch.equal(self.model.tokenize([text[:middle]])[0], ids):
                high = middle
            else:
                low = middle + 1
        return high


@dataclass(frozen=True)
class TextDistance(_OfModel):
    """Push the embedding of a text away from where it belongs. Needs no labels.

    Attributes:
        model: As above.
        target: `[B, D]`, raw, no gradient.
        measure: "squared_l2" of raw embeddings (LEAF), "unit_squared_l2" of unit rows, "kl_softmax" of unit rows taken
            for logits, target first (BERT-Attack on CLIP, as Co-Attack and MMCoA have it), or "cosine" (1 - cosine).
    """

    target: Tensor
    measure: Measure = "squared_l2"

    def evaluate(self, texts: Sequence[str]) -> Evaluation:
        """Return the distance; nothing is ever broken."""
        value = MEASURES[self.measure](self.model.embed_text(texts), self.target)
        return Evaluation(value, torch.zeros_like(value, dtype=torch.bool))

    def take(self, rows: Tensor) -> TextDistance:
        """Return the objective of the given samples."""
        return replace(self, target=self.target[rows])


@dataclass(frozen=True)
class MisclassifyByPrompt(_OfModel):
    """Make a zero-shot classifier err on an image by the prompt of the image's own class.

    Attributes:
        model: As above.
        features: `[B, D]`, unit rows of the images.
        class_weights: Unit rows of all classes as they are, `[C, D]`, or `[B, C, D]` where each image has its own.
        labels: `[B]` int64, the classes whose prompts are attacked.
        logit_scale: The factor on cosines.
        loss: "margin", "ce" or "dlr".
    """

    features: Tensor
    class_weights: Tensor
    labels: Tensor
    logit_scale: float
    loss: str = "margin"

    def __post_init__(self) -> None:
        rows = {"features": len(self.features), "labels": len(self.labels)}
        if self.class_weights.ndim == 3:
            rows["class_weights"] = len(self.class_weights)
        if len(set(rows.values())) > 1:
            given = ", ".join(f"{count} {name}" for name, count in rows.items())
            raise ShapeError(f"{given}.", "Give one row a sample of each.")

    def evaluate(self, texts: Sequence[str]) -> Evaluation:
        """Return the loss of the logits in which the text stands for the label's class."""
        own = self.features * _unit(self.model.embed_text(texts))
        similarity = torch.einsum(
            "bd,bcd->bc" if self.class_weights.ndim == 3 else "bd,cd->bc", self.features, self.class_weights
        )
        logits = self.logit_scale * similarity.scatter(1, self.labels[:, None], own.sum(dim=1, keepdim=True))
        value = CLASSIFICATION_LOSSES[self.loss](logits, self.labels)
        return Evaluation(value, ~is_correct(logits, self.labels), margin(logits, self.labels), logits)

    def take(self, rows: Tensor) -> MisclassifyByPrompt:
        """Return the objective of the given samples."""
        weights = self.class_weights[rows] if self.class_weights.ndim == 3 else self.class_weights
        return replace(self, features=self.features[rows], labels=self.labels[rows], class_weights=weights)

    @property
    def tie_tolerance(self) -> float:
        """1e-4 at a logit scale of 100, as for images."""
        return 1e-6 * self.logit_scale


@dataclass(frozen=True)
class MissImage(_OfModel):
    """Make a query by text miss its image among the images of a gallery.

    Attributes:
        model: As above.
        images: `[M, D]`, unit rows of the gallery.
        own: `[B]` int64, which of them belongs to each text.
        depth: The query is broken where so many other images stand before its own, ties with it included.
    """

    images: Tensor
    own: Tensor
    depth: int = 1

    def evaluate(self, texts: Sequence[str]) -> Evaluation:
        """Return by how much the nearest other image is nearer than the own."""
        similarity = _unit(self.model.embed_text(texts)) @ self.images.T
        index = self.own[:, None]
        own = similarity.gather(1, index).squeeze(1)
        others = similarity.scatter(1, index, -torch.inf).topk(self.depth, dim=1).values
        return Evaluation(others[:, 0] - own, others[:, -1] >= own, others[:, -1] - own)

    def take(self, rows: Tensor) -> MissImage:
        """Return the objective of the given samples."""
        return replace(self, own=self.own[rows])
