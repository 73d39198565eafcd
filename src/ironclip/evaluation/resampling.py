"""Intervals for means of scores that are no shares (CIDEr, differences of ranks), by drawing samples again.

Source: Efron, Annals of Statistics 1979; whole clusters are drawn (Field and Welsh, J. R. Statist. Soc. B 2007).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ironclip.errors import ShapeError, ValueRangeError
from ironclip.evaluation.intervals import BOOTSTRAP_DRAWS, Interval, paired_difference, wilson

_AT_ONCE = 500


def mean_interval(
    values: npt.ArrayLike, clusters: Sequence[object] | None = None, *, draws: int = BOOTSTRAP_DRAWS
) -> Interval:
    """Return the mean of some values with a 95 % interval (percentiles of the bootstrap).

    For a paired comparison give the differences of two models' values on the same samples.

    Args:
        values: Float `[N]`.
        clusters: One name a value; values of one name (five captions of one image) are drawn together. Each value is
            a cluster of its own unless given.
        draws: Number of bootstrap draws; the stream is fixed, so the same input gives the same interval.

    Raises:
        ShapeError: Not one cluster a value.
        ValueRangeError: There are no values, or one is not finite.
    """
    given = np.asarray(values, dtype=np.float64)
    names = list(range(len(given))) if clusters is None else list(clusters)
    if given.ndim != 1 or len(names) != len(given):
        raise ShapeError(f"values {given.shape} with {len(names)} clusters.", "Give one cluster a value.")
    if not given.size or not np.isfinite(given).all():
        raise ValueRangeError(f"a mean of {given.size} values, or of NaN.", "Give finite values, at least one.")
    place = {name: index for index, name in enumerate(dict.fromkeys(names))}
    index = np.array([place[name] for name in names])
    sums, sizes = np.bincount(index, weights=given), np.bincount(index)
    return interval_of(lambda counts: (counts @ sums) / (counts @ sizes), len(sizes), draws=draws)


def score_interval(scores: Sequence[float]) -> Interval:
    """Return the mean of a score a sample with a 95 % interval: Wilson's where each is 0 or 1.

    Drawing samples again that are all right, or all wrong, would promise an interval of width zero.
    """
    return wilson(int(sum(scores)), len(scores)) if {*scores} <= {0.0, 1.0} else mean_interval(scores)


def paired_interval(before: Sequence[float], after: Sequence[float]) -> Interval:
    """Return the mean of `after - before`, scores of the same samples, with a 95 % interval.

    Newcombe's where all scores are 0 or 1, as in `intervals.paired_difference`.

    Raises:
        ShapeError: The lengths differ.
    """
    if len(before) != len(after):
        raise ShapeError(f"{len(before)} scores against {len(after)}.", "Give both of the same samples.")
    if not {*before, *after} <= {0.0, 1.0}:
        return mean_interval([b - a for a, b in zip(before, after, strict=True)])
    both = sum(a == b == 1 for a, b in zip(before, after, strict=True))
    gained, lost = int(sum(after)) - both, int(sum(before)) - both
    found = paired_difference(both, gained, lost, len(before) - both - gained - lost)
    return Interval(found.difference, found.low, found.high)


def interval_of(
    statistic: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float64]], count: int, *, draws: int = BOOTSTRAP_DRAWS
) -> Interval:
    """Return a figure with a 95 % interval by drawing its clusters again.

    Args:
        statistic: From how often each cluster counts, int64 `[D, count]`, to the figure of each draw, `[D]`.
        count: Number of clusters.
        draws: Number of bootstrap draws.
    """
    estimate = float(statistic(np.ones((1, count), dtype=np.int64))[0])
    generator = np.random.Generator(np.random.Philox(key=0))
    shares = np.full(count, 1 / count)
    parts = [
        statistic(generator.multinomial(count, shares, size=min(_AT_ONCE, draws - done)))
        for done in range(0, draws, _AT_ONCE)
    ]
    low, high = np.quantile(np.concatenate(parts), [0.025, 0.975])
    return Interval(estimate, min(float(low), estimate), max(float(high), estimate))
