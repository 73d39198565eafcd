"""`digits`: 1,797 handwritten digits, 8 x 8 pixels with 17 levels, as scikit-learn ships them.

Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (its test part). That data set has no
split of these images: ours is by hash of the key, so writers occur on both sides of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from ironclip.data.images import Resizing
from ironclip.randomness import rank_of

SIDE = 32
CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "a photo of the digit {}.",
    "a photo of the number {}.",
    "a handwritten digit {}.",
    "a low resolution image of the number {}.",
    "the digit {}, white on black.",
)
SPLITS = ("train", "test")
_TEST_COUNT = 500
_TOP_LEVEL = 16


@dataclass(frozen=True, kw_only=True)
class Digits:
    """One split, in scikit-learn's order.

    Attributes:
        keys: `digits/test/000123`, the number being the position among all 1,797.
        labels: The digits, 0 to 9.
        images: uint8 `[N, 32, 32]`, ink bright on black.
    """

    keys: list[str]
    labels: list[int]
    images: npt.NDArray[np.uint8]


def load_split(split: str) -> Digits:
    """Read a split: the 500 digits with the lowest hash of their key are `test`, the other 1,297 `train`.

    Levels 0 to 16 become the nearest of 0 to 255; then Pillow's bicubic filter enlarges the 8-bit image to 32 x 32, as
    `resize=32` does with any other source.

    Args:
        split: One of `SPLITS`.
    """
    from sklearn.datasets import load_digits  # here, as it takes a second and most runs need no digits

    levels, digits = load_digits(return_X_y=True)
    ranked = sorted(range(len(digits)), key=lambda number: rank_of("digits split", number))
    chosen = sorted(ranked[:_TEST_COUNT] if split == "test" else ranked[_TEST_COUNT:])
    return Digits(
        keys=[f"digits/{split}/{number:06}" for number in chosen],
        labels=[int(digits[number]) for number in chosen],
        images=np.stack([_enlarged(levels[number].reshape(8, 8)) for number in chosen]),
    )


def _enlarged(levels: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    image = Image.fromarray(np.rint(levels * (255 / _TOP_LEVEL)).astype(np.uint8))
    return np.asarray(Resizing(resize=SIDE)(image))
