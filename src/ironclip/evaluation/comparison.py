"""Whether one way of training beats another: training runs differ by their seed, test images by chance.

A single pair of runs says nothing of the seed, and a test over seeds alone nothing of the images. Here the variance of
a difference is the sum of both, and the verdicts of one table are adjusted for their number.

Sources: Agresti and Min, Statistics in Medicine 2005, 24:729 (half a pseudo-image in each cell of a paired table);
Satterthwaite, Biometrics Bulletin 1946 (degrees of freedom of a sum of variances); Holm, Scand. J. Statist. 1979.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from ironclip.errors import ShapeError, ValueRangeError
from ironclip.evaluation.intervals import holm

LEVEL = 0.05
"""Chance, at most, that a table without any true difference names a winner."""


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Two methods, each trained with some seeds, on the same images.

    Attributes:
        first: Name of one.
        second: Name of the other.
        difference: Mean share of right answers of the first minus that of the second, in [-1, 1].
        low: Lower end of the 95 % interval, of seeds and images together, not adjusted for the number of contests.
        high: Upper end.
        seed_error: Standard error of the difference by training seeds alone.
        image_error: Standard error by test images alone.
        p_value: Of "no difference", two-sided, of this contest alone.
        adjusted: The same, adjusted for the contests of its table; equal to `p_value` for one on its own.
    """

    first: str
    second: str
    difference: float
    low: float
    high: float
    seed_error: float
    image_error: float
    p_value: float
    adjusted: float

    @property
    def winner(self) -> str | None:
        """The method that beats the other, None where the difference may be chance."""
        if self.adjusted >= LEVEL:
            return None
        return self.first if self.difference > 0 else self.second


def contest(first: str, ours: npt.ArrayLike, second: str, theirs: npt.ArrayLike) -> Contest:
    """Compare two methods by the verdicts of their runs.

    With d the mean over seeds of the first method's verdicts minus that of the second's, image by image, the squared
    standard error is var(d)/N, with half a pseudo-image a cell so that it is never 0, plus var(accuracy)/S over the
    seeds of each. The interval is Student's, with Satterthwaite's degrees of freedom.

    Args:
        first: Name of one method.
        ours: Its verdicts, boolean `[S, N]`: a row a training seed, a column an image; or `[N]`, those of a model that
            no seed decides (the original).
        second: Name of the other.
        theirs: Its verdicts `[S', N]` or `[N]`, on the same images in the same order.

    Raises:
        ShapeError: The verdicts are neither matrices nor vectors, or not of the same images.
        ValueRangeError: A method has fewer than two seeds, so that its spread is not known; or there are no images.
    """
    a, b = _verdicts(first, ours), _verdicts(second, theirs)
    if a.shape[1] != b.shape[1]:
        raise ShapeError(
            f"{first} has verdicts on {a.shape[1]} images, {second} on {b.shape[1]}.",
            "Evaluate both on the same images.",
        )
    images = a.shape[1]
    per_image = a.mean(axis=0) - b.mean(axis=0)
    padded = images + 2
    spread = (np.square(per_image).sum() + 1) / padded - (per_image.sum() / padded) ** 2
    parts = [
        (spread / padded, images - 1),
        *(_of_seeds(verdicts) for verdicts in (a, b)),
    ]
    variance = sum(part for part, _ in parts)
    # A single image has no freedom of its own: what it adds to the sum is then taken as known.
    freedom = variance**2 / sum(part**2 / max(free, 1) for part, free in parts)
    error, difference = float(np.sqrt(variance)), float(per_image.mean())
    reach = float(student.ppf(0.975, freedom)) * error
    p_value = 2 * float(student.sf(abs(difference) / error, freedom))
    return Contest(
        first=first,
        second=second,
        difference=difference,
        low=max(-1.0, difference - reach),
        high=min(1.0, difference + reach),
        seed_error=float(np.sqrt(parts[1][0] + parts[2][0])),
        image_error=float(np.sqrt(parts[0][0])),
        p_value=p_value,
        adjusted=p_value,
    )


def contests(verdicts: Mapping[str, npt.ArrayLike]) -> list[Contest]:
    """Compare every pair of methods, and adjust for the number of pairs.

    Args:
        verdicts: By method, as in `contest`.

    Returns:
        A contest a pair, in the order in which the methods are given.

    Raises:
        ShapeError: The verdicts are not of the same images.
        ValueRangeError: A method has fewer than two seeds, or there are no images.
    """
    pairs = itertools.combinations(verdicts.items(), 2)
    found = [contest(first, ours, second, theirs) for (first, ours), (second, theirs) in pairs]
    adjusted = holm([one.p_value for one in found])
    return [replace(one, adjusted=value) for one, value in zip(found, adjusted, strict=True)]


def _of_seeds(verdicts: npt.NDArray[np.float64]) -> tuple[float, int]:
    """Return the squared standard error of a mean accuracy by seeds, and its degrees of freedom."""
    if len(verdicts) == 1:
        return 0.0, 1
    return float(verdicts.mean(axis=1).var(ddof=1)) / len(verdicts), len(verdicts) - 1


def _verdicts(name: str, given: npt.ArrayLike) -> npt.NDArray[np.float64]:
    verdicts = np.asarray(given)
    if verdicts.ndim not in (1, 2) or verdicts.dtype != np.bool_:
        raise ShapeError(
            f"the verdicts of {name} are {verdicts.dtype} of shape {verdicts.shape}.",
            "Give truth values, a row a training seed and a column an image.",
        )
    rows = np.atleast_2d(verdicts)
    if not rows.shape[1] or (verdicts.ndim == 2 and len(rows) < 2):
        raise ValueRangeError(
            f"{name} has {len(rows)} training seed(s) and {rows.shape[1]} image(s).",
            "A method is ranked over two seeds or more: the spread between them is part of the verdict.",
        )
    return rows.astype(np.float64)
