"""Intervals for shares of samples, for differences between two models, and for a mean over classes.

Sources: Wilson, JASA 1927; Newcombe, Statistics in Medicine 1998, 17:2635 (paired difference, method 10); McNemar's
test in its exact binomial form; Rao and Wu, JASA 1988 (bootstrap in small strata); Holm, Scand. J. Statist. 1979.
All intervals are two-sided at 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from ironclip.errors import ShapeError, ValueRangeError

Z_95 = 1.959963984540054  # the normal quantile at 0.975
BOOTSTRAP_DRAWS = 10_000


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; shares are in [0, 1], not in percent."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """Share of the first model minus share of the second, on the same samples.

    Attributes:
        difference: In [-1, 1].
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
        p_value: Exact McNemar test of "no difference", two-sided.
    """

    difference: float
    low: float
    high: float
    p_value: float


def wilson(successes: int, n: int) -> Interval:
    """Return the share of successes with its Wilson interval.

    Args:
        successes: Between 0 and n.
        n: Number of samples, at least 1.

    Raises:
        ValueRangeError: There are no samples, or the count does not fit.
    """
    if n < 1:
        raise ValueRangeError(f"an interval for {n} samples was asked for.", "Evaluate at least one sample.")
    if not 0 <= successes <= n:
        raise ValueRangeError(
            f"{successes} successes in {n} samples.", "Give a count of successes between 0 and the number of samples."
        )
    share = successes / n
    spread = Z_95**2 / n
    centre = (share + spread / 2) / (1 + spread)
    half_width = Z_95 / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    # At 0 and n successes one end is exact; rounding would leave it 1e-19 off, on either side.
    low = 0.0 if successes == 0 else max(0.0, centre - half_width)
    high = 1.0 if successes == n else min(1.0, centre + half_width)
    return Interval(share, low, high)


def paired_difference(both: int, only_a: int, only_b: int, neither: int) -> PairedDifference:
    """Compare two models on the same samples: share of A minus share of B.

    The interval is Newcombe's method 10 (Wilson limits of the two shares, joined through their correlation phi, whose
    numerator carries the continuity correction); the p value is McNemar's, exact.

    Args:
        both: Samples that A and B both get right.
        only_a: Samples that only A gets right.
        only_b: Samples that only B gets right.
        neither: Samples that neither gets right.

    Raises:
        ValueRangeError: A count is negative, or all are zero.
    """
    counts = {"both": both, "only_a": only_a, "only_b": only_b, "neither": neither}
    negative = [f"{name} = {count}" for name, count in counts.items() if count < 0]
    if negative:
        raise ValueRangeError(f"negative count: {', '.join(negative)}.", "Give four counts of samples.")
    n = sum(counts.values())
    if n == 0:
        raise ValueRangeError("a comparison of two models over 0 samples.", "Evaluate both on the same samples.")

    a, b = wilson(both + only_a, n), wilson(both + only_b, n)
    phi = _phi(both, only_a, only_b, neither)
    below_a, above_a = a.estimate - a.low, a.high - a.estimate
    below_b, above_b = b.estimate - b.low, b.high - b.estimate
    delta = math.sqrt(max(0.0, below_a**2 - 2 * phi * below_a * above_b + above_b**2))
    epsilon = math.sqrt(max(0.0, above_a**2 - 2 * phi * above_a * below_b + below_b**2))
    difference = (only_a - only_b) / n
    discordant = only_a + only_b
    p_value = float(binomtest(only_a, discordant).pvalue) if discordant else 1.0
    return PairedDifference(difference, difference - delta, difference + epsilon, p_value)


def _phi(both: int, only_a: int, only_b: int, neither: int) -> float:
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    if margins == 0:
        return 0.0
    n = both + only_a + only_b + neither
    numerator: float = both * neither - only_a * only_b
    if numerator > 0:
        numerator = max(numerator - n / 2, 0.0)
    return numerator / math.sqrt(margins)


def mean_per_class_interval(correct: npt.ArrayLike, labels: npt.ArrayLike, *, draws: int = BOOTSTRAP_DRAWS) -> Interval:
    """Return the mean over classes of the share of right samples, with a bootstrap interval.

    Samples are drawn again within each class. Since they are right or wrong, the number of right ones among m draws is
    binomial, and all classes of all draws come from one call. A class of n samples draws n - 1 of them (Rao and Wu), so
    that the spread is unbiased; a class of one sample adds none, so with many of these the interval is too narrow.

    Args:
        correct: Boolean `[N]`.
        labels: Integer `[N]`; classes without a sample do not enter the mean.
        draws: Number of bootstrap draws; the stream is fixed, so the same input gives the same interval.

    Raises:
        ShapeError: The lengths differ.
        ValueRangeError: There are no samples.
    """
    right, sizes = count_per_class(correct, labels)
    shares = right / sizes
    estimate = float(shares.mean())
    n, n_right = int(sizes.sum()), int(right.sum())
    if n_right in (0, n):
        # Drawing again from samples that are all alike would promise an interval of width zero.
        return wilson(n_right, n)
    generator = np.random.Generator(np.random.Philox(key=0))
    drawn = np.maximum(sizes - 1, 1)
    means = (generator.binomial(drawn, shares, size=(draws, len(sizes))) / drawn).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(estimate, min(float(low), estimate), max(float(high), estimate))


def count_per_class(
    correct: npt.ArrayLike, labels: npt.ArrayLike
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return right samples and samples of each class that has any, int64 `[classes present]` each.

    Raises:
        ShapeError: The lengths differ, or these are not vectors.
        ValueRangeError: There are no samples.
    """
    is_right: npt.NDArray[Any] = np.asarray(correct, dtype=bool)
    classes = np.asarray(labels)
    if is_right.ndim != 1 or is_right.shape != classes.shape:
        raise ShapeError(
            f"verdicts have the shape {is_right.shape}, labels {classes.shape}.", "Give one of each per sample."
        )
    if not is_right.size:
        raise ValueRangeError("a mean over the classes of 0 samples.", "Evaluate at least one sample.")
    present, index = np.unique(classes, return_inverse=True)
    return np.bincount(index, weights=is_right, minlength=len(present)).astype(np.int64), np.bincount(index)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p values of one table for their number (Holm's step-down), in the order given.

    Raises:
        ValueRangeError: A p value lies outside [0, 1].
    """
    wrong = [p for p in p_values if not 0 <= p <= 1]
    if wrong:
        raise ValueRangeError(f"p values outside [0, 1]: {wrong}.", "Give probabilities.")
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, floor = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = floor
    return adjusted
