"""Does a model's confidence mean what it says: binned calibration errors, Brier score, likelihood, temperature.

Inputs are logits as stored, or float64 probabilities made of them; never clamped, never half precision. What cannot be
scored (NaN, a confidence outside [0, 1], no samples, one class) is refused by name. A bin holds its right edge, and
the first bin also holds 0; the edge rule is part of the metric: the other one can halve the value.

Sources: evaluation plan 4.1 and 4.4; bins of Guo et al., ICML 2017, arXiv:1706.04599; class by class, Nixon et al.,
2019, arXiv:1904.01685; Brier, 1950.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import logsumexp

from ironclip.errors import ShapeError, ValueRangeError

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

BINS = 15
EDGES = "right_closed"
COLDEST, HOTTEST = 0.05, 20.0
"""Between these temperatures the best one is searched."""


@dataclass(frozen=True)
class Bins:
    """A reliability diagram: samples in order of confidence, cut into bins; lists have an entry a bin.

    Attributes:
        counts: Samples.
        hits: Right ones among them.
        confidence: Mean, in [0, 1]; None in an empty bin.
    """

    counts: tuple[int, ...]
    hits: tuple[int, ...]
    confidence: tuple[float | None, ...]

    @property
    def gaps(self) -> tuple[float | None, ...]:
        """Confidence less share of hits, above 0 where the model is over-confident; None in an empty bin."""
        return tuple(
            None if mean is None else mean - hits / count
            for count, hits, mean in zip(self.counts, self.hits, self.confidence, strict=True)
        )

    @property
    def ece(self) -> float:
        """Expected calibration error: mean size of the gap, a bin weighing as much as its samples."""
        parts = [count * abs(gap) for count, gap in zip(self.counts, self.gaps, strict=True) if gap is not None]
        return math.fsum(parts) / sum(self.counts)

    @property
    def mce(self) -> float:
        """Maximum calibration error: the largest gap of a bin that holds samples, however few."""
        return max(abs(gap) for gap in self.gaps if gap is not None)


@dataclass(frozen=True)
class Temperature:
    """The divisor of logits under which a validation split is most likely.

    Attributes:
        value: In [0.05, 20].
        at_bound: The best value lies at or beyond an end of this range (`temperature_at_bound`).
        n: Samples that it was fitted on.
    """

    value: float
    at_bound: bool
    n: int


def probabilities(logits: npt.ArrayLike, temperature: float = 1.0) -> Floats:
    """Return the softmax of logits divided by a temperature.

    Args:
        logits: `[N, C]`; minus infinity stands for a probability of 0.
        temperature: Above 0.

    Returns:
        Float64 `[N, C]`, rows sum to 1.

    Raises:
        ShapeError: There is one class, or the array has not two axes.
        ValueRangeError: There are no samples, the temperature is not a positive number, or a row has a NaN, a plus
            infinity, or nothing but minus infinities; names the first such sample.
    """
    if not 0 < temperature < math.inf:
        raise ValueRangeError(f"the temperature is {temperature}.", "Give a positive number.")
    scores = checked_logits(logits) / temperature
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))


def equal_width_bins(confidence: npt.ArrayLike, hits: npt.ArrayLike, bins: int = BINS) -> Bins:
    """Sort samples into bins [0, 1/M], (1/M, 2/M], ..., ((M - 1)/M, 1].

    Args:
        confidence: `[N]` in [0, 1], the largest probability of each sample.
        hits: Boolean `[N]`: the answer is right.
        bins: Their number M.

    Raises:
        ShapeError: The lengths differ.
        ValueRangeError: There are no samples or bins, or a confidence is NaN or outside [0, 1].
    """
    conf, right = _checked_confidence(confidence, hits)
    return _collect(_bin_index(conf, bins), conf, right, bins)


def adaptive_bins(confidence: npt.ArrayLike, hits: npt.ArrayLike, ids: npt.ArrayLike, bins: int = BINS) -> Bins:
    """Sort samples into bins that hold equally many; the first N mod M hold one more.

    Args:
        confidence: As in `equal_width_bins`.
        hits: As in `equal_width_bins`.
        ids: One a sample, all different; they order samples of equal confidence, so the order given does not matter.
        bins: Their number M; with fewer samples some stay empty.

    Raises:
        ShapeError: The lengths differ.
        ValueRangeError: As in `equal_width_bins`.
    """
    conf, right = _checked_confidence(confidence, hits)
    order = confidence_order(conf, ids)
    index = np.repeat(np.arange(_checked_bins(bins)), [len(part) for part in np.array_split(order, bins)])
    return _collect(index, conf[order], right[order], bins)


def classwise_ece(
    probs: npt.ArrayLike, labels: npt.ArrayLike, bins: int = BINS, *, at_least: float = 0.0
) -> tuple[float, ...]:
    """Return the calibration error of each class's probability as a forecast of that class.

    The metric is their mean. Where classes are many most probabilities are near 0 and swamp the rest, hence `at_least`.

    Args:
        probs: `[N, C]`, rows sum to 1.
        labels: Integer `[N]`.
        bins: Their number, cut as in `equal_width_bins`.
        at_least: Leave out forecasts below this probability (1/C in the thresholded metric).

    Returns:
        One value for each class that has a forecast left.

    Raises:
        ShapeError: There is one class, or the lengths differ.
        ValueRangeError: There are no samples, a probability is NaN or outside [0, 1], a row does not sum to 1, or a
            label is no class.
    """
    forecast, truth = _checked_probabilities(probs, labels)
    n, classes = forecast.shape
    cell = _bin_index(forecast.ravel(), bins).reshape(n, classes) + np.arange(classes) * bins
    gap = forecast.copy()
    gap[np.arange(n), truth] -= 1
    kept = forecast >= at_least
    sums = np.bincount(cell[kept], weights=gap[kept], minlength=classes * bins).reshape(classes, bins)
    counts = kept.sum(axis=0)
    present = counts > 0
    return tuple((np.abs(sums).sum(axis=1)[present] / counts[present]).tolist())


def brier_terms(probs: npt.ArrayLike, labels: npt.ArrayLike) -> Floats:
    """Return each sample's squared distance from the truth, `[N]` in [0, 2]; the Brier score is their mean.

    Raises:
        ShapeError: As in `classwise_ece`.
        ValueRangeError: As in `classwise_ece`.
    """
    forecast, truth = _checked_probabilities(probs, labels)
    error = forecast.copy()
    error[np.arange(len(truth)), truth] -= 1
    return np.asarray(np.square(error).sum(axis=1))


def nll_terms(logits: npt.ArrayLike, labels: npt.ArrayLike, temperature: float = 1.0) -> Floats:
    """Return each sample's negative log-likelihood in nats, `[N]`; the NLL is their mean.

    Raises:
        ShapeError: There is one class, or the lengths differ.
        ValueRangeError: As in `probabilities`, a label is no class, or has the probability 0.
    """
    scores = checked_logits(logits) / temperature
    truth = _checked_labels(labels, scores)
    own = scores[np.arange(len(truth)), truth]
    _refuse(np.isneginf(own), "has a label of probability 0, so that no likelihood is left", "Use finite logits.")
    return np.asarray(logsumexp(scores, axis=1) - own)


def fit_temperature(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Temperature:
    """Return the temperature under which clean images of a validation split are most likely.

    Fit it on other images than those to be judged, and never on attacked ones. The likelihood is concave in
    1/temperature, so the root of its slope is the optimum.

    Args:
        logits: `[N, C]`, finite.
        labels: Integer `[N]`.

    Raises:
        ShapeError: There is one class, or the lengths differ.
        ValueRangeError: There are no samples, a logit is not finite, a label is no class, or every row has equal
            logits, so that no temperature changes anything.
    """
    scores = checked_logits(logits)
    truth = _checked_labels(labels, scores)
    _refuse(~np.isfinite(scores).all(axis=1), "has a logit that is not finite", "Use finite logits.")
    scores = scores - scores.max(axis=1, keepdims=True)
    if not scores.any():
        raise ValueRangeError("the logits of every sample are equal.", "No temperature changes such answers.")
    own = scores[np.arange(len(truth)), truth].mean()

    def slope(log_temperature: float) -> float:
        """Return the slope of the NLL by 1/temperature: positive where a higher temperature is better."""
        odds = np.exp(scores * math.exp(-log_temperature))
        return float(((odds * scores).sum(axis=1) / odds.sum(axis=1)).mean() - own)

    low, high = math.log(COLDEST), math.log(HOTTEST)
    if slope(low) <= 0:
        return Temperature(COLDEST, at_bound=True, n=len(truth))
    if slope(high) >= 0:
        return Temperature(HOTTEST, at_bound=True, n=len(truth))
    return Temperature(math.exp(brentq(slope, low, high, xtol=1e-12)), at_bound=False, n=len(truth))


def confidence_order(confidence: npt.ArrayLike, ids: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the positions of samples by rising confidence, those of equal confidence by their ids.

    Raises:
        ShapeError: The lengths differ.
    """
    conf, names = np.asarray(confidence, dtype=np.float64), np.asarray(ids)
    if names.shape != conf.shape:
        raise ShapeError(f"ids of the shape {names.shape} for {len(conf)} samples.", "Give one id a sample.")
    return np.lexsort((names, conf))


def checked_logits(logits: npt.ArrayLike) -> Floats:
    """Return logits in float64 `[N, C]`; raises as `probabilities` does."""
    scores = np.asarray(logits, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ShapeError(
            f"the logits have the shape {scores.shape}, expected [N, C] with at least 2 classes.",
            "With one class every answer is right and certain.",
        )
    if not len(scores):
        raise ValueRangeError("the logits hold no samples.", "Evaluate at least one sample.")
    _refuse(np.isnan(scores).any(axis=1), "has a logit that is NaN", "Evaluate it again, or leave it out by name.")
    largest = scores.max(axis=1)
    _refuse(~np.isfinite(largest), "has infinite logits and no probabilities", "Use finite logits.")
    return scores


def _bin_index(values: Floats, bins: int) -> npt.NDArray[np.int64]:
    """Return for each value how many inner edges m/M lie strictly below it."""
    edges = np.arange(1, _checked_bins(bins)) / bins
    return np.searchsorted(edges, values, side="left")


def _collect(index: npt.NDArray[np.int64], confidence: Floats, hits: Flags, bins: int) -> Bins:
    counts = np.bincount(index, minlength=bins)
    right = np.bincount(index, weights=hits, minlength=bins)
    sums = np.bincount(index, weights=confidence, minlength=bins)
    means = [float(total / count) if count else None for total, count in zip(sums, counts, strict=True)]
    return Bins(tuple(counts.tolist()), tuple(int(number) for number in right), tuple(means))


def _checked_bins(bins: int) -> int:
    if bins < 1:
        raise ValueRangeError(f"{bins} bins were asked for.", "Give at least one bin.")
    return bins


def _checked_confidence(confidence: npt.ArrayLike, hits: npt.ArrayLike) -> tuple[Floats, Flags]:
    conf, right = np.asarray(confidence, dtype=np.float64), np.asarray(hits)
    if conf.ndim != 1 or conf.shape != right.shape:
        raise ShapeError(f"confidence has the shape {conf.shape}, hits {right.shape}.", "Give one of each per sample.")
    if not conf.size:
        raise ValueRangeError("confidence holds no samples.", "Evaluate at least one sample.")
    if not np.isin(right, (0, 1)).all():
        raise ValueRangeError("hits has other values than true and false.", "Give one verdict a sample.")
    _refuse_no_probability(conf[:, None], "confidence")
    return conf, right.astype(bool)


def _checked_probabilities(probs: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Floats, npt.NDArray[np.int64]]:
    forecast = np.asarray(probs, dtype=np.float64)
    if forecast.ndim != 2 or forecast.shape[1] < 2:
        raise ShapeError(
            f"the probabilities have the shape {forecast.shape}, expected [N, C] with at least 2 classes.",
            "With one class every answer is right and certain.",
        )
    if not len(forecast):
        raise ValueRangeError("the probabilities hold no samples.", "Evaluate at least one sample.")
    _refuse_no_probability(forecast, "probability")
    _refuse(
        np.abs(forecast.sum(axis=1) - 1) > 1e-6,
        "has probabilities that do not sum to 1",
        "Give probabilities: of logits, those of `probabilities`.",
    )
    return forecast, _checked_labels(labels, forecast)


def _checked_labels(labels: npt.ArrayLike, scores: Floats) -> npt.NDArray[np.int64]:
    truth = np.asarray(labels)
    if truth.shape != (len(scores),):
        raise ShapeError(f"{len(scores)} samples for labels of the shape {truth.shape}.", "Give one label a sample.")
    if truth.dtype.kind not in "iu":
        raise ValueRangeError(f"labels are {truth.dtype} values.", "Give the index of a class, an integer.")
    stray = (truth < 0) | (truth >= scores.shape[1])
    _refuse(stray, f"has a label that is none of {scores.shape[1]} classes", "Check labels and class names.")
    return truth.astype(np.int64)


def _refuse_no_probability(values: Floats, name: str) -> None:
    _refuse(np.isnan(values).any(axis=1), f"has a {name} that is NaN", "Evaluate it again, or leave it out by name.")
    outside = ((values < 0) | (values > 1)).any(axis=1)
    _refuse(outside, f"has a {name} outside [0, 1]", "Give probabilities, not logits.")


def _refuse(wrong: Any, what: str, remedy: str) -> None:
    """Refuse samples by their positions, from 0; `wrong` is boolean, `[N]`."""
    positions = np.flatnonzero(wrong)
    if positions.size:
        others = f", as have {positions.size - 1} others" if positions.size > 1 else ""
        raise ValueRangeError(f"sample number {positions[0]} of {len(wrong)} {what}{others}.", remedy)
