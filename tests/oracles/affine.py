"""The worst that an adversary can do to an affine classifier `z = W x + b`, x in [0, 1]: evaluation plan 2.14.

Margins are true logit minus rival: positive where the answer is right. Fractions are exact: a float is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np


def worst_margin_linf(
    weight: Sequence[Sequence[float]], bias: Sequence[float], x: Sequence[float], label: int, eps: Fraction
) -> Fraction:
    """Smallest margin over rivals and over the linf ball within the box, exactly."""
    return min(_worst_against(weight, bias, x, label, rival, eps) for rival in range(len(weight)) if rival != label)


def _worst_against(
    weight: Sequence[Sequence[float]], bias: Sequence[float], x: Sequence[float], label: int, rival: int, eps: Fraction
) -> Fraction:
    margin = Fraction(bias[label]) - Fraction(bias[rival])
    for own, other, at in zip(weight[label], weight[rival], x, strict=True):
        slope, place = Fraction(own) - Fraction(other), Fraction(at)
        room = place if slope > 0 else 1 - place
        margin += slope * place - abs(slope) * min(eps, room)
    return margin


def worst_delta_l2(slope: np.ndarray, x: np.ndarray, eps: float) -> np.ndarray:
    """Perturbation that lowers `slope . x` most within the l2 ball and the box, float64."""
    size, room = np.abs(slope), np.where(slope > 0, x, 1 - x)
    if np.linalg.norm(room[size > 0]) <= eps:
        return -np.sign(slope) * room
    low, high = 0.0, 1.0
    while np.linalg.norm(np.minimum(high * size, room)) < eps:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.linalg.norm(np.minimum(middle * size, room)) < eps else (low, middle)
    return -np.sign(slope) * np.minimum(low * size, room)


def worst_margin_l2(weight: np.ndarray, bias: np.ndarray, x: np.ndarray, label: int, eps: float) -> float:
    """Smallest margin over rivals and over the l2 ball within the box, float64."""
    margins = []
    for rival in range(len(weight)):
        if rival != label:
            slope = weight[label] - weight[rival]
            margins.append(slope @ (x + worst_delta_l2(slope, x, eps)) + bias[label] - bias[rival])
    return float(min(margins))
