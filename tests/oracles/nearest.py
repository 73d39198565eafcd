"""How far the nearest break of an affine classifier is, within the box: evaluation plan 2.6 and 2.14, by bisection."""

from __future__ import annotations

import numpy as np


def shortest_move(x: np.ndarray, slope: np.ndarray, rise: float, norm: str) -> np.ndarray:
    """Return the shortest move in the box that raises `slope . x` by `rise`; the corner where none does, float64."""
    way = np.sign(slope) * np.sign(rise)
    room = np.where(way > 0, 1 - x, np.where(way < 0, x, 0.0))
    size = np.abs(slope)
    pace = np.ones_like(size) if norm == "linf" else size

    def gain(time: float) -> float:
        return float(size @ np.minimum(time * pace, room))

    if size @ room <= abs(rise):
        return way * room
    low, high = 0.0, 1.0
    while gain(high) < abs(rise):
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if gain(middle) < abs(rise) else (low, middle)
    return way * np.minimum(high * pace, room)


def break_radius(weight: np.ndarray, bias: np.ndarray, x: np.ndarray, label: int, norm: str) -> float:
    """Return the distance of the nearest point where some class reaches the label's logit; infinite if none does."""
    found = [np.inf]
    for rival in range(len(weight)):
        slope, gap = weight[rival] - weight[label], weight[rival] @ x - weight[label] @ x + bias[rival] - bias[label]
        if rival == label:
            continue
        move = shortest_move(x, slope, max(-gap, 0.0), norm)
        if slope @ move + gap >= -1e-9:
            found.append(float(np.abs(move).max() if norm == "linf" else np.linalg.norm(move)))
    return min(found)
