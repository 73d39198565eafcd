"""Cosines of rows, by loops over Python floats."""

from __future__ import annotations

import math
from collections.abc import Sequence

Rows = Sequence[Sequence[float]]


def cosine(left: Sequence[float], right: Sequence[float]) -> float:
    product = math.fsum(a * b for a, b in zip(left, right, strict=True))
    return product / math.sqrt(math.fsum(a * a for a in left)) / math.sqrt(math.fsum(b * b for b in right))


def mean_cosine(left: Rows, right: Rows) -> float:
    return math.fsum(cosine(a, b) for a, b in zip(left, right, strict=True)) / len(left)
