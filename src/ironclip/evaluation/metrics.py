"""Accuracy with and without an adversary, as pure functions of stored verdicts.

A sample is right on the clean image when `pred_clean` equals its label; the tie rule (a tie with a class of a different
prompt is wrong) is already in `pred_clean`. Source: evaluation plan 1.4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ironclip.errors import ShapeError, ValueRangeError
from ironclip.evaluation.intervals import count_per_class

Flags = npt.NDArray[np.bool_]


def clean_correct(labels: npt.ArrayLike, pred_clean: npt.ArrayLike) -> Flags:
    """Say for each sample whether the clean image is classified right.

    Args:
        labels: Integer `[N]`.
        pred_clean: Integer `[N]`.

    Returns:
        Boolean `[N]`.

    Raises:
        ShapeError: The lengths differ.
        ValueRangeError: There are no samples, or a value is NaN.
    """
    truth, prediction = _columns(labels=labels, pred_clean=pred_clean)
    return np.asarray(truth == prediction, dtype=bool)


def robust_correct(labels: npt.ArrayLike, pred_clean: npt.ArrayLike, broken: npt.ArrayLike) -> Flags:
    """Say for each sample whether it is right on the clean image and under attack.

    Args:
        labels: Integer `[N]`.
        pred_clean: Integer `[N]`.
        broken: Boolean `[N]`: some attack changed the answer.

    Returns:
        Boolean `[N]`.

    Raises:
        ShapeError: The lengths differ.
        ValueRangeError: There are no samples, or a value is NaN.
    """
    truth, prediction, fell = _columns(labels=labels, pred_clean=pred_clean, broken=broken)
    return np.asarray((truth == prediction) & ~fell.astype(bool), dtype=bool)


def clean_accuracy(labels: npt.ArrayLike, pred_clean: npt.ArrayLike) -> float:
    """Return the share of all samples that are right without an adversary; arguments as in `clean_correct`."""
    return float(clean_correct(labels, pred_clean).mean())


def robust_accuracy(labels: npt.ArrayLike, pred_clean: npt.ArrayLike, broken: npt.ArrayLike) -> float:
    """Return the share of ALL samples that are right and stay so; arguments as in `robust_correct`."""
    return float(robust_correct(labels, pred_clean, broken).mean())


def attack_success_rate(labels: npt.ArrayLike, pred_clean: npt.ArrayLike, broken: npt.ArrayLike) -> float:
    """Return the share broken among the samples that were right before the attack.

    Raises:
        ShapeError: The lengths differ.
        ValueRangeError: There are no samples, a value is NaN, or no sample was right to begin with.
    """
    right = clean_correct(labels, pred_clean)
    stays = robust_correct(labels, pred_clean, broken)
    if not right.any():
        raise ValueRangeError(
            f"none of the {right.size} samples is right before the attack, so its success rate is undefined.",
            "Report the robust accuracy, which is 0.",
        )
    return float(1 - stays.sum() / right.sum())


def mean_per_class(correct: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return the mean over classes of the share of right samples; classes without a sample do not count.

    Args:
        correct: Boolean `[N]`, from `clean_correct` or `robust_correct`.
        labels: Integer `[N]`.

    Raises:
        ShapeError: The lengths differ.
        ValueRangeError: There are no samples, or a value is NaN.
    """
    verdicts, classes = _columns(correct=correct, labels=labels)
    right, sizes = count_per_class(verdicts, classes)
    return float((right / sizes).mean())


def _columns(**columns: npt.ArrayLike) -> list[npt.NDArray[Any]]:
    arrays = {name: np.asarray(values) for name, values in columns.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    if any(len(shape) != 1 for shape in shapes.values()) or len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ShapeError(f"one value a sample is expected, got the shapes {listed}.", "Give vectors of one length.")
    for name, array in arrays.items():
        if not array.size:
            raise ValueRangeError(f"{name} holds no samples.", "Evaluate at least one sample.")
        if array.dtype.kind not in "biuf":
            raise ValueRangeError(f"{name} holds {array.dtype} values, expected numbers.", "Give integers or booleans.")
        if array.dtype.kind == "f" and np.isnan(array).any():
            raise ValueRangeError(
                f"{name} is NaN for {int(np.isnan(array).sum())} of {array.size} samples: these are not scored.",
                "Evaluate them again; a missing verdict is never counted as right or wrong.",
            )
    return list(arrays.values())
