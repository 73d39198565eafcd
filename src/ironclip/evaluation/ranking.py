"""How well a score puts samples in order: area under the ROC curve, area under the risk-coverage curve.

Sources: evaluation plan 4.1; AUROC as the Mann-Whitney statistic; AURC, Geifman et al., ICLR 2019, arXiv:1805.08206.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ironclip.errors import ShapeError, ValueRangeError
from ironclip.evaluation.calibration import Floats, confidence_order

_CACHED = 1 << 16  # numbers that are worked on at a time, few enough to stay near the processor


def auroc(positive: npt.ArrayLike, negative: npt.ArrayLike) -> float:
    """Return the probability that a positive has the higher score, ties counting half.

    Args:
        positive: `[P]`.
        negative: `[N]`.

    Raises:
        ShapeError: One of them is no vector.
        ValueRangeError: One of them is empty, or holds a NaN.
    """
    high, low = _checked(positive, "positive"), _checked(negative, "negative")
    ordered = np.sort(low)
    below = np.searchsorted(ordered, high, side="left") + np.searchsorted(ordered, high, side="right")
    return float(below.sum() / (2 * high.size * low.size))


def weighted_auroc(positive: Floats, negative: Floats, weights: npt.NDArray[np.uint16]) -> Floats:
    """Return `auroc` of paired samples, once for each bootstrap draw.

    Args:
        positive: `[N]`, without NaN.
        negative: `[N]`, of the same samples in the same order.
        weights: `[draws, N]`: how often each sample was drawn.

    Returns:
        `[draws]`; NaN where none of these samples was drawn.
    """
    order = np.argsort(negative, kind="stable")
    ordered = negative[order]
    left, right = (np.searchsorted(ordered, positive, side=side) for side in ("left", "right"))
    areas = np.full(len(weights), np.nan)
    step = max(1, _CACHED // len(order))
    for start in range(0, len(weights), step):
        drawn = weights[start : start + step].astype(np.float64)
        total = np.zeros((len(drawn), len(order) + 1))
        np.cumsum(drawn[:, order], axis=1, out=total[:, 1:])
        pairs = np.einsum("dn,dn->d", drawn, total[:, left] + total[:, right])
        some = total[:, -1] > 0
        areas[start : start + step][some] = pairs[some] / (2 * total[some, -1] ** 2)
    return areas


def aurc(confidence: npt.ArrayLike, hits: npt.ArrayLike, ids: npt.ArrayLike) -> float:
    """Return the mean error rate among the i most confident samples, over i = 1 to N: 0 is best.

    Args:
        confidence: `[N]`.
        hits: Boolean `[N]`.
        ids: One a sample, all different; they order samples of equal confidence.

    Raises:
        ShapeError: The lengths differ.
        ValueRangeError: There are no samples, or a confidence is NaN.
    """
    conf = _checked(confidence, "confidence")
    right = np.asarray(hits, dtype=bool)
    if right.shape != conf.shape:
        raise ShapeError(f"confidence has the shape {conf.shape}, hits {right.shape}.", "Give one of each per sample.")
    return _mean_risk(~right[confidence_order(-conf, ids)])


def excess_aurc(confidence: npt.ArrayLike, hits: npt.ArrayLike, ids: npt.ArrayLike) -> float:
    """Return `aurc` less what the best order of the same answers would have (E-AURC)."""
    return aurc(confidence, hits, ids) - _mean_risk(np.sort(~np.asarray(hits, dtype=bool)))


def _mean_risk(errors: npt.NDArray[np.bool_]) -> float:
    return float((np.cumsum(errors) / np.arange(1, errors.size + 1)).mean())


def _checked(values: npt.ArrayLike, name: str) -> Floats:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1:
        raise ShapeError(f"{name} has the shape {scores.shape}.", "Give one score a sample.")
    if not scores.size:
        raise ValueRangeError(f"{name} holds no samples, so nothing can be ranked.", "Give at least one of each kind.")
    if np.isnan(scores).any():
        raise ValueRangeError(
            f"{name} is NaN for {int(np.isnan(scores).sum())} of {scores.size} samples, the first is number "
            f"{int(np.isnan(scores).argmax())}.",
            "Evaluate them again, or leave them out by name.",
        )
    return scores
