"""Blur; images are float64 `[H, W, 3]` in [0, 1], and so are results, not yet clipped."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Image = npt.NDArray[np.float64]
_ACROSS = (1, 1, 0)
"""Blurs act along rows and columns, not between channels."""


def defocus_blur(image: Image, random: np.random.Generator, radius: float, softness: float) -> Image:
    """Convolve with a disk whose edge is softened by a small Gaussian."""
    kernel = disk(radius, softness)
    return np.stack([ndimage.convolve(channel, kernel, mode="mirror") for channel in _channels(image)], axis=-1)


def disk(radius: float, softness: float) -> Image:
    """Return the kernel of a lens out of focus; 17 pixels wide, or as wide as a larger disk is.

    The sum is 1; in published code large disks brighten by 1 %, since softening them reaches beyond the kernel.
    """
    reach = math.ceil(max(8, radius))
    along = np.arange(-reach, reach + 1)
    inside = (along[:, None] ** 2 + along[None, :] ** 2 <= radius**2).astype(np.float64)
    soft = ndimage.gaussian_filter(inside, softness, mode="mirror", radius=1 if radius <= 8 else 2)
    return np.asarray(soft / soft.sum(), dtype=np.float64)


def glass_blur(image: Image, random: np.random.Generator, deviation: float, reach: int, rounds: int) -> Image:
    """Blur, swap each pixel with one nearby, blur: as through frosted glass.

    Pixels that lie nearer to the border than `reach` are not moved by themselves; the draw includes both ends, where
    published code leaves one out.
    """
    blurred = _gaussian(image, deviation)
    height, width = image.shape[:2]
    order = list(range(height * width))
    for _ in range(rounds):
        shifts = random.integers(-reach, reach + 1, (height, width, 2)).tolist()
        for row in range(height - reach - 1, reach - 1, -1):
            for column in range(width - reach - 1, reach - 1, -1):
                down, right = shifts[row][column]
                here, there = row * width + column, (row + down) * width + column + right
                order[here], order[there] = order[there], order[here]
    return _gaussian(blurred.reshape(-1, 3)[order].reshape(image.shape), deviation)


def motion_blur(image: Image, random: np.random.Generator, radius: int, deviation: float) -> Image:
    """Smear along a line within 45 degrees of level."""
    return smear(image, radius, deviation, random.uniform(-45, 45))


def smear(image: Image, radius: int, deviation: float, degrees: float) -> Image:
    """Average the pixels along a line that starts here, with weights of half a Gaussian; borders are continued.

    This is what ImageMagick calls motion blur. Works on `[H, W]` and `[H, W, 3]`.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * deviation**2))
    weights /= weights.sum()
    angle = math.radians(degrees)
    rows, columns = np.arange(image.shape[0]), np.arange(image.shape[1])
    blurred = np.zeros_like(image)
    for step, weight in zip(steps, weights, strict=True):
        down, right = (math.ceil(step * part - 0.5) for part in (math.sin(angle), math.cos(angle)))
        there = (rows + down).clip(0, len(rows) - 1)[:, None], (columns + right).clip(0, len(columns) - 1)[None, :]
        blurred += weight * image[there]
    return blurred


def zoom_blur(image: Image, random: np.random.Generator, largest: float, step: float) -> Image:
    """Average the image with enlargements of itself."""
    factors = np.arange(1, largest, step)
    return (image + sum(enlarged(image, factor) for factor in factors)) / (len(factors) + 1)


def enlarged(image: Image, factor: float) -> Image:
    """Enlarge the middle of an image, `[H, W]` or `[H, W, 3]`, to its own size; bilinear."""
    height, width = image.shape[:2]
    down, across = math.ceil(height / factor), math.ceil(width / factor)
    top, left = (height - down) // 2, (width - across) // 2
    rows = np.linspace(top, top + down - 1, height)
    columns = np.linspace(left, left + across - 1, width)
    places = np.meshgrid(rows, columns, indexing="ij")
    return per_channel(image, places, mode="nearest")


def per_channel(image: Image, places: Any, *, mode: str) -> Image:
    """Read an image, `[H, W]` or `[H, W, 3]`, at places (rows, columns) `[H, W]`; bilinear."""
    if image.ndim == 2:
        return np.asarray(ndimage.map_coordinates(image, places, order=1, mode=mode), dtype=np.float64)
    read = [ndimage.map_coordinates(channel, places, order=1, mode=mode) for channel in _channels(image)]
    return np.stack(read, axis=-1)


def _gaussian(image: Image, deviation: float) -> Image:
    sigma = [deviation * axis for axis in _ACROSS]
    return np.asarray(ndimage.gaussian_filter(image, sigma, mode="nearest"), dtype=np.float64)


def _channels(image: Image) -> list[Image]:
    return [image[:, :, channel] for channel in range(image.shape[2])]
