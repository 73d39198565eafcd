"""Text-guided attention maps pixel by pixel, by loops over Python floats; methods plan 2.7, read literally."""

from __future__ import annotations

import math
from collections.abc import Sequence

from oracles.embedding import cosine

Row = Sequence[float]


def cosines(patches: Sequence[Row], text: Row) -> list[float]:
    return [cosine(patch, text) for patch in patches]


def scores_over_tokens(tokens: Sequence[Row], text: Row) -> list[float]:
    """Published: each column is divided by its length over all tokens, then the first token is dropped."""
    length = math.sqrt(math.fsum(t * t for t in text))
    columns = [math.sqrt(math.fsum(token[k] ** 2 for token in tokens)) for k in range(len(text))]
    return [math.fsum(token[k] / columns[k] * text[k] / length for k in range(len(text))) for token in tokens[1:]]


def attention_map(scores: Row, side: int) -> list[float]:
    low, high = min(scores), max(scores)
    grid = round(math.sqrt(len(scores)))
    small = [(score - low) / (high - low) if high > low else 0.0 for score in scores]
    return [_between(small, grid, row, column, side) for row in range(side) for column in range(side)]


def _between(small: Row, grid: int, row: int, column: int, side: int) -> float:
    """Read the small map at the centre of a pixel of the large one, linearly between centres, flat beyond the last."""
    total = 0.0
    for y, wy in _neighbours(row, grid, side):
        for x, wx in _neighbours(column, grid, side):
            total += wy * wx * small[y * grid + x]
    return total


def _neighbours(position: int, grid: int, side: int) -> list[tuple[int, float]]:
    place = min(max((position + 0.5) * grid / side - 0.5, 0.0), grid - 1.0)
    below = min(int(place), grid - 1)
    above = min(below + 1, grid - 1)
    return [(below, 1 - (place - below)), (above, place - below)]


def distance(left: Row, right: Row) -> float:
    return math.sqrt(math.fsum((a - b) ** 2 for a, b in zip(left, right, strict=True)))
