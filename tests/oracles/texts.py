"""Distances between strings and edits of them, read literally: no shortcuts, no library."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache


def levenshtein(first: Sequence[object], second: Sequence[object]) -> int:
    """The recursion of the definition, with a memory."""

    @cache
    def distance(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        replaced = distance(i - 1, j - 1) + (first[i - 1] != second[j - 1])
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, replaced)

    return distance(len(first), len(second))


def within_one_edit(text: str, alphabet: Sequence[str]) -> set[str]:
    """Every string that one insertion, replacement or deletion makes of a text, and the text."""
    found = {text}
    for index in range(len(text) + 1):
        found |= {text[:index] + letter + text[index:] for letter in alphabet}
    for index in range(len(text)):
        found.add(text[:index] + text[index + 1 :])
        found |= {text[:index] + letter + text[index + 1 :] for letter in alphabet}
    return found
