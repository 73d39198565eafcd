"""Light, shape and coding; images are float64 `[H, W, 3]` in [0, 1], and so are results, not yet clipped."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from scipy import ndimage

from ironclip.attacks.natural.blur import per_channel

Image = npt.NDArray[np.float64]


def brightness(image: Image, random: np.random.Generator, more: float) -> Image:
    """Raise the value (of hue, saturation, value) of each pixel.

    Hue and saturation stay, so channels are scaled together; black, which has none, becomes grey.
    """
    value: Image = image.max(axis=2, keepdims=True)
    raised = (value + more).clip(0, 1)
    return np.where(value > 0, image * raised / np.where(value > 0, value, 1), raised)


def contrast(image: Image, random: np.random.Generator, share: float) -> Image:
    """Bring each channel nearer to its mean."""
    mean: Image = image.mean(axis=(0, 1), keepdims=True)
    return (image - mean) * share + mean


def elastic_transform(image: Image, random: np.random.Generator, reach: float, smoothness: float, tilt: float) -> Image:
    """Shift three points at random, and everything between as an affine map does; then shift every pixel a little."""
    height, width = image.shape[:2]
    middle, arm = np.array([width, height]) // 2, min(height, width) // 3
    before = np.array([middle + arm, middle + np.array([arm, -arm]), middle - arm], dtype=np.float64)
    after = before + random.uniform(-tilt, tilt, before.shape)
    # Rows (x, y, 1) of where pixels go to, mapped to where they come from.
    back = np.linalg.solve(np.column_stack([after, np.ones(3)]), before)
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    across, down = np.moveaxis(np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ back, -1, 0)
    moved = per_channel(image, [down, across], mode="mirror")
    shifts = [
        reach * ndimage.gaussian_filter(random.uniform(-1, 1, (height, width)), smoothness, mode="reflect", truncate=3)
        for _ in range(2)
    ]
    return per_channel(moved, [rows + shifts[0], columns + shifts[1]], mode="reflect")


def pixelate(image: Image, random: np.random.Generator, share: float) -> Image:
    """Shrink by averaging boxes, and enlarge again."""
    picture = _to_pillow(image)
    small = max(int(picture.width * share), 1), max(int(picture.height * share), 1)
    box = Pillow.Resampling.BOX
    return _from_pillow(picture.resize(small, box).resize(picture.size, box))


def jpeg_compression(image: Image, random: np.random.Generator, quality: int) -> Image:
    """Store as JPEG and read again."""
    file = io.BytesIO()
    _to_pillow(image).save(file, "JPEG", quality=quality)
    return _from_pillow(Pillow.open(file))


def _to_pillow(image: Image) -> Pillow.Image:
    return Pillow.fromarray(np.rint(255 * image).astype(np.uint8))


def _from_pillow(picture: Pillow.Image) -> Image:
    return np.asarray(picture, dtype=np.float64) / 255
