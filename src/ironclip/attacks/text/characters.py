"""Character edits: LEAF's and Charmer's searches, and every single edit.

Sources: Abad Rocamora et al., ICML 2024, arXiv:2405.04346 (Charmer); Abad Rocamora et al., NeurIPS 2025,
arXiv:2506.03355 (LEAF). A text of L characters has 2L + 1 places: even ones are the gaps before, between and behind its
characters, odd ones the characters. A symbol put into a gap is inserted, one put upon a character replaces it, and the
empty symbol deletes; a character "replaced" by itself is deleted. So an edit changes the Levenshtein distance by at
most one. Several edits are made one after another, each the best of its round.

Deviations: a real `_` can be inserted (it is the published code's mark for "nothing here"); the last candidate is
evaluated too; the unedited text is always a candidate; places beyond what the tokenizer keeps are not tried; draws
belong to (seed, key), not to a global generator; a text that has won is left alone.
"""

from __future__ import annotations

import math
import string
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ironclip.attacks.text.base import TextAttack, best_of, evaluate, register_text_attack
from ironclip.attacks.text.budget import Budget
from ironclip.attacks.text.constraints import Constraint, accepts
from ironclip.attacks.text.objectives import TextObjective
from ironclip.errors import ConfigError, ValueRangeError
from ironclip.randomness import SampleRandom

SYMBOLS = ("", *string.ascii_lowercase, " ", *string.ascii_uppercase, *string.digits, *string.punctuation)
"""What can be put at a place: nothing, letters, space, digits and punctuation; 96 in all."""


def edit(text: str, place: int, symbol: str) -> str:
    """Put a symbol at one of the 2L + 1 places of a text.

    Raises:
        ValueRangeError: There is no such place.
    """
    if not 0 <= place <= 2 * len(text):
        raise ValueRangeError(
            f"place {place} of a text with {len(text)} characters.", f"Give one from 0 to {2 * len(text)}."
        )
    index, on_character = divmod(place, 2)
    if not on_character:
        return text[:index] + symbol + text[index:]
    kept = "" if symbol == text[index] else symbol
    return text[:index] + kept + text[index + 1 :]


def single_edits(text: str, length: int | None = None) -> list[str]:
    """List every text that one edit can make of a text, the unedited one first, each once.

    Args:
        text: The text.
        length: Edit only so many of its characters, from the first.
    """
    count = len(text) if length is None else length
    return list(dict.fromkeys([text, *(edit(text, place, s) for place in range(2 * count + 1) for s in SYMBOLS)]))


@dataclass(frozen=True, kw_only=True)
class _Characters(TextAttack):
    """A search of so many rounds, one edit each.

    Attributes:
        edits: Levenshtein budget.
        constraint: Which edits are allowed: "none", "no_new_words", or "leaf", the published form of the latter.
    """

    edits: int = 1
    constraint: Constraint = "no_new_words"

    def __post_init__(self) -> None:
        if self.edits < 0:
            raise ConfigError(f"the text attack's edits are {self.edits}.", "Give a number of at least 0.")

    @property
    def budget(self) -> Budget:
        """So many edits."""
        return Budget(characters=self.edits)

    def search(self, objective: TextObjective, texts: Sequence[str], random: SampleRandom) -> list[str]:
        """Make one edit a round to each text that has not won."""
        found, open_rows = list(texts), list(range(len(texts)))
        for number in range(self.edits):
            here = torch.tensor(open_rows, dtype=torch.int64, device=objective.device)
            part = objective.take(here)
            current = [found[row] for row in open_rows]
            evaluations = evaluate(part, [[text] for text in current])
            alive = [index for index, one in enumerate(evaluations) if not bool(one.broken[0])]
            if not alive:
                break
            open_rows = [open_rows[index] for index in alive]
            part = part.take(torch.tensor(alive, device=objective.device))
            current = [current[index] for index in alive]
            for row, text in zip(open_rows, self.round(part, current, random.take(open_rows), number), strict=True):
                found[row] = text
        return found

    @abstractmethod
    def round(self, objective: TextObjective, texts: Sequence[str], random: SampleRandom, number: int) -> list[str]:
        """Return each text after its best edit."""

    def _allowed(self, text: str, candidates: Sequence[str]) -> list[str]:
        """Put the unedited text in the place of candidates that the constraint forbids."""
        return [other if accepts(self.constraint, text, other) else text for other in candidates]

    def _best(
        self, objective: TextObjective, texts: Sequence[str], candidates: Sequence[Sequence[str]]
    ) -> list[tuple[int, str]]:
        """Return index and text of the best candidate of each sample."""
        allowed = [self._allowed(text, others) for text, others in zip(texts, candidates, strict=True)]
        best = [best_of(one, objective.tie_tolerance) for one in evaluate(objective, allowed)]
        return [(index, others[index]) for index, others in zip(best, allowed, strict=True)]


@register_text_attack("leaf")
@dataclass(frozen=True, kw_only=True)
class LeafSearch(_Characters):
    """Characters, LEAF's search: the best of some drawn places, then there the best of some drawn symbols.

    Attributes:
        edits: Levenshtein budget (k).
        constraint: As above; "leaf" as published.
        candidates: Places drawn, and symbols drawn (rho). Two passes of so many texts a round, however long a text is.
    """

    candidates: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates < 1:
            raise ConfigError(f"the text attack's candidates are {self.candidates}.", "Give a number of at least 1.")

    def round(self, objective: TextObjective, texts: Sequence[str], random: SampleRandom, number: int) -> list[str]:
        """Choose the place by what a space does there, then the symbol."""
        places = []
        for row, length in enumerate(objective.lengths_read(texts)):
            count = 2 * length + 1
            draw = random.generator(row, f"places|{number}")
            places.append(draw.choice(count, min(self.candidates, count), replace=False).tolist())
        spaced = [[edit(text, place, " ") for place in drawn] for text, drawn in zip(texts, places, strict=True)]
        chosen = [drawn[best] for drawn, (best, _) in zip(places, self._best(objective, texts, spaced), strict=True)]
        candidates = []
        for row, (text, place) in enumerate(zip(texts, chosen, strict=True)):
            draw = random.generator(row, f"symbols|{number}")
            drawn = draw.choice(len(SYMBOLS), min(self.candidates, len(SYMBOLS)), replace=False).tolist()
            candidates.append([text, *(edit(text, place, SYMBOLS[symbol]) for symbol in drawn)])
        return [text for _, text in self._best(objective, texts, candidates)]


@register_text_attack("charmer")
@dataclass(frozen=True, kw_only=True)
class Charmer(_Characters):
    """Characters, Charmer's search: all symbols at the best places, judged by what a space does there.

    Attributes:
        edits: Levenshtein budget (k).
        constraint: As above.
        places: How many places go into the second stage (n); 20 in LEAF's evaluation.
    """

    places: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.places < 1:
            raise ConfigError(f"the text attack's places are {self.places}.", "Give a number of at least 1.")

    def round(self, objective: TextObjective, texts: Sequence[str], random: SampleRandom, number: int) -> list[str]:
        """Try a space everywhere, then every symbol at the best places."""
        lengths = objective.lengths_read(texts)
        spaced = [
            self._allowed(text, [edit(text, place, " ") for place in range(2 * length + 1)])
            for text, length in zip(texts, lengths, strict=True)
        ]
        candidates = []
        for text, evaluation in zip(texts, evaluate(objective, spaced), strict=True):
            places = _largest(evaluation.value.tolist(), self.places, objective.tie_tolerance)
            candidates.append([text, *(edit(text, place, symbol) for place in places for symbol in SYMBOLS)])
        return [text for _, text in self._best(objective, texts, candidates)]


@register_text_attack("single_edit")
@dataclass(frozen=True, kw_only=True)
class SingleEdit(TextAttack):
    """Characters, every single edit: the exact worst case, since nothing within the budget is left out.

    Attributes:
        constraint: As above.
    """

    constraint: Constraint = "no_new_words"

    @property
    def budget(self) -> Budget:
        """One edit."""
        return Budget(characters=1)

    def search(self, objective: TextObjective, texts: Sequence[str], random: SampleRandom) -> list[str]:
        """Evaluate all edits, text by text."""
        found = []
        for row, (text, length) in enumerate(zip(texts, objective.lengths_read(texts), strict=True)):
            edits = single_edits(text, length)
            candidates = [other for other in edits if other == text or accepts(self.constraint, text, other)]
            own = objective.take(torch.tensor([row], device=objective.device))
            (evaluation,) = evaluate(own, [candidates])
            found.append(candidates[best_of(evaluation, objective.tie_tolerance)])
        return found


def _largest(values: Sequence[float], count: int, tolerance: float) -> list[int]:
    """Return the indices of the largest values, best first; equal ones in their order."""
    finite = [abs(value) for value in values if math.isfinite(value)]
    slack = max(tolerance, 1e-5 * max(finite, default=0.0)) or 1.0
    # Rounded to steps of the slack, so that noise does not order what is equal; what is not finite comes last.
    steps = [-round(value / slack) if math.isfinite(value) else math.inf for value in values]
    return sorted(range(len(values)), key=lambda index: (steps[index], index))[:count]
