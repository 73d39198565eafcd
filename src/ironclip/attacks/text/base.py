"""The contract of a text attack: settings, a budget, and a search whose queries run in batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch

from ironclip.attacks.objectives import Evaluation, frozen
from ironclip.attacks.text.budget import Budget
from ironclip.attacks.text.objectives import TextObjective
from ironclip.errors import RunFailedError, ShapeError
from ironclip.randomness import SampleRandom
from ironclip.registry import Registry

QUERIES = 256
"""Texts a pass through the model."""


class TextAttack(ABC):
    """A frozen dataclass of settings; a subclass says what it may spend, and searches.

    Attributes:
        name: Name in the registry.
    """

    name: ClassVar[str]

    @property
    @abstractmethod
    def budget(self) -> Budget:
        """How far the texts may move."""

    @abstractmethod
    def search(self, objective: TextObjective, texts: Sequence[str], random: SampleRandom) -> list[str]:
        """Return the best text found for each sample; runs without gradients, the model frozen."""

    def perturb(self, objective: TextObjective, texts: Sequence[str], random: SampleRandom) -> list[str]:
        """Attack one text a sample.

        The result of a sample is a function of its text, its objective, the seed and its key, whatever the batch.

        Raises:
            ShapeError: Not one key a text.
            RunFailedError: The search left its budget, measured on the strings that it returned.
        """
        if len(random.keys) != len(texts):
            raise ShapeError(f"{len(random.keys)} sample keys for {len(texts)} texts.", "Give one key a text.")
        with torch.no_grad(), frozen(objective.modules):
            found = self.search(objective, texts, random) if texts else []
        for text, attacked in zip(texts, found, strict=True):
            if not self.budget.allows(text, attacked):
                raise RunFailedError(
                    f'text attack "{self.name}" left its budget ({self.budget}): "{text}" became "{attacked}".',
                    "This is a defect of the attack: its results are not to be used.",
                )
        return found


def evaluate(objective: TextObjective, candidates: Sequence[Sequence[str]]) -> list[Evaluation]:
    """Evaluate several texts a sample, each distinct one once, in batches over all samples.

    Args:
        objective: Of B samples.
        candidates: B lists of texts, none of them empty.

    Returns:
        B evaluations, one entry a candidate.
    """
    places: dict[tuple[int, str], int] = {}
    for row, texts in enumerate(candidates):
        for text in texts:
            places.setdefault((row, text), len(places))
    pairs, parts = list(places), []
    for start in range(0, len(pairs), QUERIES):
        part = pairs[start : start + QUERIES]
        rows = torch.tensor([row for row, _ in part], device=objective.device)
        parts.append(objective.take(rows).evaluate([text for _, text in part]))
    value, broken = (torch.cat([getattr(part, name) for part in parts]) for name in ("value", "broken"))
    found = []
    for row, texts in enumerate(candidates):
        index = torch.tensor([places[row, text] for text in texts], device=value.device)
        found.append(Evaluation(value[index], broken[index]))
    return found


def best_of(evaluation: Evaluation, tolerance: float) -> int:
    """Choose a candidate: one that has won before all others, then the largest value, of equals the first.

    Tokenizers fold case, so that many candidates are equal; in which order a batch adds up must not choose among them.

    Args:
        evaluation: Of the candidates of one sample.
        tolerance: Values nearer than this, or than 1e-5 of the best, are equal.
    """
    value = evaluation.value.double().nan_to_num(nan=-torch.inf)
    if bool(evaluation.broken.any()):
        value = value.masked_fill(~evaluation.broken, -torch.inf)
    best = value.max()
    slack = max(tolerance, 1e-5 * float(best.abs())) if torch.isfinite(best) else 0.0
    candidates = (value >= best - slack) & (~torch.isneginf(value) | torch.isneginf(best))
    return int(candidates.int().argmax())


TEXT_ATTACKS: Registry[TextAttack] = Registry("attack", "ironclip.attacks.text")
register_text_attack = TEXT_ATTACKS.register
