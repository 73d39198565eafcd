"""Randomised classifiers under attack: every look is a draw of its own, and it belongs to the sample.

The draw is a function of (seed, sample key, how often the sample was looked at), hence not of batch, order or
neighbours. Attacks take means over draws by their `eot` (expectation over transformation).

Source: Athalye et al., ICML 2018, arXiv:1802.00420; evaluation plan 2.12.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ironclip.attacks.objectives import Evaluation, Misclassify
from ironclip.randomness import SampleRandom


@dataclass(frozen=True, kw_only=True)
class MisclassifyRandomised(Misclassify):
    """Make a randomised classifier err.

    Attributes:
        classifier: Has `drawn_logits(pixels, random) -> [B, C]` beside what `Misclassify` asks of it
            (models.randomised.RandomisedClassifier).
        random: The samples' streams, one a row.
        looks: How often each sample was looked at; shared by all that `take` makes. Copies of a sample in one batch,
            which pad a tile, see the same draw.
    """

    random: SampleRandom
    looks: Counter[str] = field(default_factory=Counter, repr=False, compare=False)

    def evaluate(self, pixels: Tensor) -> Evaluation:
        """Return loss, success and logits of the next draw."""
        keys = self.random.keys
        streams = replace(self.random, keys=[f"{key}|look {self.looks[key]}" for key in keys])
        self.looks.update(set(keys))
        drawn = _Draw(self.classifier, streams)
        return Misclassify(drawn, self.labels, self.loss, self.targets, self.groups).evaluate(pixels)

    def take(self, rows: Tensor) -> MisclassifyRandomised:
        """Return the objective of the given rows."""
        targets = None if self.targets is None else self.targets[rows]
        return replace(self, labels=self.labels[rows], targets=targets, random=self.random.take(rows))


@dataclass(frozen=True)
class _Draw:
    """The classifier with one set of draws."""

    classifier: Any
    random: SampleRandom

    def logits(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.classifier.drawn_logits(pixels, self.random)
        return logits
