"""How everything here is timed: in turns, against a peak of the same run, with operations counted apart."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from ironclip.machine import product_rate, synchronise

Name = TypeVar("Name")
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Peak:
    """The machine's rate in one precision: the best of a fixed grid of products.

    Attributes:
        rate: Operations a second, the largest of the shapes' medians.
        shape: Rows, inner size and columns of that product.
    """

    rate: float
    shape: Shape


def timed(run: Callable[[], object], device: str | torch.device = "cpu") -> float:
    """Run once; return seconds."""
    synchronise(device)
    began = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - began


def in_turns(
    runs: Mapping[Name, Callable[[], float]], rounds: int, fewer: Mapping[Name, int] | None = None
) -> dict[Name, float]:
    """Measure in rounds that take turns, so that a machine that slows down slows all; the first does not count.

    Args:
        runs: By name, each returns what it measured: seconds, or a rate.
        rounds: That count.
        fewer: Of names whose turns take long: in how many of the rounds that count they take part, and in no other.

    Returns:
        The median of each.
    """
    bounds = dict(fewer or {})
    found: dict[Name, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            if name in bounds and not 1 <= number <= bounds[name]:
                continue
            measured = run()
            if number:
                found[name].append(measured)
    return {name: statistics.median(values) for name, values in found.items()}


def product_runs(
    shapes: Iterable[Shape], dtype: torch.dtype, device: str = "cpu"
) -> dict[tuple[torch.dtype, Shape], Callable[[], float]]:
    """Return what `in_turns` needs to measure the grid in one precision."""
    return {(dtype, shape): partial(product_rate, shape, dtype, device=device) for shape in shapes}


def best_product(rates: Mapping[tuple[torch.dtype, Shape], float], dtype: torch.dtype) -> Peak:
    """Return the peak of a precision from the medians of its grid."""
    own = {shape: rate for (precision, shape), rate in rates.items() if precision == dtype}
    best = max(own, key=lambda shape: own[shape])
    return Peak(own[best], best)


def counted(run: Callable[[], object]) -> int:
    """Run once; return the operations of its matrix products, a multiplication and an addition counted as two."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())
