"""Calibration by its definitions, in loops over Python floats; the bins are written as the intervals that they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Floats = Sequence[float]
Inside = Callable[[float, float, float], bool]


def right_closed(low: float, value: float, high: float) -> bool:
    """(low, high], and 0 is in the first."""
    return low < value <= high or (low == 0 == value)


def left_closed(low: float, value: float, high: float) -> bool:
    """[low, high), and 1 is in the last; the rule of numpy.histogram, not ours."""
    return low <= value < high or (high == 1 == value)


def gaps(confidence: Floats, hits: Sequence[bool], bins: int, inside: Inside = right_closed) -> list[tuple[int, float]]:
    """Samples, and confidence less accuracy, of each bin that has any."""
    found = []
    for m in range(bins):
        members = [i for i, value in enumerate(confidence) if inside(m / bins, value, (m + 1) / bins)]
        if members:
            found.append((len(members), _gap(confidence, hits, members)))
    return found


def ece(confidence: Floats, hits: Sequence[bool], bins: int, inside: Inside = right_closed) -> float:
    return math.fsum(n * abs(gap) for n, gap in gaps(confidence, hits, bins, inside)) / len(confidence)


def mce(confidence: Floats, hits: Sequence[bool], bins: int, inside: Inside = right_closed) -> float:
    return max(abs(gap) for _, gap in gaps(confidence, hits, bins, inside))


def adaptive_ece(confidence: Floats, hits: Sequence[bool], ids: Sequence, bins: int) -> float:
    order = sorted(range(len(confidence)), key=lambda i: (confidence[i], ids[i]))
    total, start = [], 0
    for m in range(bins):
        size = len(order) // bins + (m < len(order) % bins)
        members = order[start : start + size]
        start += size
        if members:
            total.append(size * abs(_gap(confidence, hits, members)))
    return math.fsum(total) / len(order)


def classwise_ece(probs: Sequence[Floats], labels: Sequence[int], bins: int, at_least: float = 0.0) -> list[float]:
    errors = []
    for k in range(len(probs[0])):
        kept = [(row[k], label == k) for row, label in zip(probs, labels, strict=True) if row[k] >= at_least]
        if kept:
            errors.append(ece([p for p, _ in kept], [hit for _, hit in kept], bins))
    return errors


def softmax(row: Floats) -> list[float]:
    odds = [math.exp(z - max(row)) for z in row]
    return [one / math.fsum(odds) for one in odds]


def brier(probs: Sequence[Floats], labels: Sequence[int]) -> float:
    return math.fsum(
        (p - (k == label)) ** 2 for row, label in zip(probs, labels, strict=True) for k, p in enumerate(row)
    ) / len(probs)


def nll(probs: Sequence[Floats], labels: Sequence[int]) -> float:
    return -math.fsum(math.log(row[label]) for row, label in zip(probs, labels, strict=True)) / len(probs)


def aurc(confidence: Floats, hits: Sequence[bool], ids: Sequence) -> float:
    order = sorted(range(len(confidence)), key=lambda i: (-confidence[i], ids[i]))
    risks = [sum(not hits[j] for j in order[:i]) / i for i in range(1, len(order) + 1)]
    return math.fsum(risks) / len(risks)


def auroc(positive: Floats, negative: Floats) -> float:
    wins = sum((p > n) + (p == n) / 2 for p in positive for n in negative)
    return wins / (len(positive) * len(negative))


def _gap(confidence: Floats, hits: Sequence[bool], members: Sequence[int]) -> float:
    return (math.fsum(confidence[i] for i in members) - sum(hits[i] for i in members)) / len(members)
