"""Objectives over texts whose value is a rule of the string: what a search finds can be told by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ironclip.attacks.objectives import Evaluation
from ironclip.attacks.text.objectives import TextObjective
from ironclip.randomness import rank_of


def landscape(salt: str, text: str) -> float:
    """Draw a value in [0, 1) for each string."""
    return rank_of(salt, text) / 2**64


@dataclass(frozen=True)
class Scored(TextObjective):
    """The value of a rule at (salt of the sample, text); broken from `goal` on. Remembers what it was asked."""

    salts: Sequence[str]
    rule: Callable[[str, str], float] = landscape
    goal: float = float("inf")
    asked: list[str] = field(default_factory=list)

    def evaluate(self, texts: Sequence[str]) -> Evaluation:
        assert len(texts) == len(self.salts)
        self.asked.extend(texts)
        value = torch.tensor([self.rule(*pair) for pair in zip(self.salts, texts, strict=True)], dtype=torch.float64)
        return Evaluation(value, value >= self.goal)

    def take(self, rows: Tensor) -> Scored:
        return replace(self, salts=[self.salts[int(row)] for row in rows])
