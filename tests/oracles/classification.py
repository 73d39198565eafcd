"""Losses of one row of logits, by loops over Python floats; the definitions of evaluation plan 2.1, read literally."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

Row = Sequence[float]


def log_sum_exp(values: Row) -> float:
    largest = max(values)
    return largest + math.log(math.fsum(math.exp(value - largest) for value in values))


def cross_entropy(logits: Row, label: int) -> float:
    """-log softmax, written as log(1 + exp(a)) of the difference `a`, so that nothing cancels."""
    difference = log_sum_exp([z for c, z in enumerate(logits) if c != label]) - logits[label]
    return max(difference, 0.0) + math.log1p(math.exp(-abs(difference)))


def soft_cross_entropy(logits: Row, target: Row) -> float:
    normaliser = log_sum_exp(logits)
    return -math.fsum(share * (z - normaliser) for share, z in zip(target, logits, strict=True))


def margin(logits: Row, label: int) -> float:
    return max(z for c, z in enumerate(logits) if c != label) - logits[label]


def dlr(logits: Row, label: int) -> float:
    first, _, third = sorted(logits, reverse=True)[:3]
    return margin(logits, label) / (first - third)


def targeted_margin(logits: Row, target: int, label: int) -> float:
    return logits[target] - logits[label]


def targeted_dlr(logits: Row, target: int, label: int) -> float:
    first, _, third, fourth = sorted(logits, reverse=True)[:4]
    return targeted_margin(logits, target, label) / (first - (third + fourth) / 2)


def is_correct(logits: Row, label: int, names: Sequence[str] | None = None) -> bool:
    """Right if no class of another name reaches the label's logit, and no class of the same name stands before it."""
    if not all(map(math.isfinite, logits)):
        return False
    names = names or [str(c) for c in range(len(logits))]
    if names.index(names[label]) != label:
        return False
    return all(z < logits[label] for c, z in enumerate(logits) if names[c] != names[label])


def central_difference(function: Callable[[Row], float], at: Row, step: float = 1e-5) -> np.ndarray:
    """Gradient by differences, one coordinate at a time."""
    slopes = []
    for index in range(len(at)):
        above, below = list(at), list(at)
        above[index] += step
        below[index] -= step
        slopes.append((function(above) - function(below)) / (2 * step))
    return np.array(slopes)
