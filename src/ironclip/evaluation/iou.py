"""How well masks fit: confusions of pixels, and intersection over union.

Source: Everingham et al., IJCV 2010 (Pascal VOC); the mean runs over the classes that occur.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ironclip.data.masks import UNLABELLED
from ironclip.errors import ShapeError, ValueRangeError

Counts = npt.NDArray[np.int64]


def confusion(truth: npt.ArrayLike, predicted: npt.ArrayLike, classes: int) -> Counts:
    """Count pixels by true class (rows) and predicted class (columns), `[C, C]`; unlabelled ones are left out.

    Args:
        truth: Integers of any shape, below `classes` or `UNLABELLED`.
        predicted: Integers of the same shape, below `classes`.
        classes: C.

    Raises:
        ShapeError: The shapes differ.
        ValueRangeError: A class is out of range.
    """
    real, said = np.asarray(truth), np.asarray(predicted)
    if real.shape != said.shape:
        raise ShapeError(f"masks {real.shape} and predictions {said.shape}.", "Give one prediction a pixel.")
    labelled = real != UNLABELLED
    real, said = real[labelled].astype(np.int64), said[labelled].astype(np.int64)
    both = np.concatenate([real, said])
    if both.size and (both.min() < 0 or both.max() >= classes):
        raise ValueRangeError(
            f"classes from {both.min()} to {both.max()}, of {classes}.", "Masks hold indices into the class names."
        )
    return np.bincount(real * classes + said, minlength=classes * classes).reshape(classes, classes)


def class_iou(counts: Counts) -> list[float | None]:
    """Return for each class the pixels rightly given to it over those that are or were given to it.

    None for a class that no pixel is: what was wrongly given to it already lowers the class that the pixel is, and the
    mean over classes must not run over other classes under attack than without.
    """
    right, real, said = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    return [
        float(hit / (own + given - hit)) if own else None for hit, own, given in zip(right, real, said, strict=True)
    ]


def mean_iou(counts: Counts) -> float:
    """Return the mean of `class_iou` over the classes that occur, in [0, 1].

    Raises:
        ValueRangeError: No pixel is labelled.
    """
    found = [share for share in class_iou(counts) if share is not None]
    if not found:
        raise ValueRangeError("mIoU of no labelled pixel.", "Give images with masks.")
    return math.fsum(found) / len(found)
