"""What an adversary spent on a text, recomputed from the two strings alone.

No attack is believed: whatever it says of its own edits, a text counts only if these distances are within its budget.
Source: Levenshtein, Soviet Physics Doklady 1966; words are what single spaces separate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ironclip.errors import ConfigError


def levenshtein(first: Sequence[object], second: Sequence[object]) -> int:
    """Count the fewest insertions, deletions and replacements that turn one sequence into the other.

    Strings are compared by code point, lists by item.
    """
    start, shorter = 0, min(len(first), len(second))
    while start < shorter and first[start] == second[start]:
        start += 1
    end = 0
    while end < shorter - start and first[len(first) - 1 - end] == second[len(second) - 1 - end]:
        end += 1
    # Equal ends cost nothing in some cheapest way, and attacked texts are equal nearly everywhere.
    first, second = first[start : len(first) - end], second[start : len(second) - end]
    above = list(range(len(second) + 1))
    for row, item in enumerate(first, start=1):
        here = [row]
        for column, other in enumerate(second, start=1):
            replaced = above[column - 1] + (item != other)
            here.append(min(above[column] + 1, here[column - 1] + 1, replaced))
        above = here
    return above[-1]


def changed_words(first: str, second: str) -> int:
    """Count the fewest words to insert, delete or replace; words are what single spaces separate."""
    return levenshtein(first.split(" "), second.split(" "))


@dataclass(frozen=True)
class Budget:
    """How far a text may move, by either measure or by both.

    Attributes:
        characters: Largest Levenshtein distance between the strings, None for any.
        words: Largest number of words changed, None for any.
    """

    characters: int | None = None
    words: int | None = None

    def __post_init__(self) -> None:
        for name in ("characters", "words"):
            limit = getattr(self, name)
            if limit is not None and limit < 0:
                raise ConfigError(f"a budget of {limit} {name}.", "Give a number of at least 0.")

    def allows(self, original: str, attacked: str) -> bool:
        """Say whether the attacked text lies within the budget."""
        return (self.characters is None or levenshtein(original, attacked) <= self.characters) and (
            self.words is None or changed_words(original, attacked) <= self.words
        )
