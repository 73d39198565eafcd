"""Noise; images are float64 `[H, W, 3]` in [0, 1], and so are results, not yet clipped."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.float64]


def gaussian_noise(image: Image, random: np.random.Generator, deviation: float) -> Image:
    """Add independent normal noise to every entry."""
    return image + random.normal(scale=deviation, size=image.shape)


def shot_noise(image: Image, random: np.random.Generator, photons: float) -> Image:
    """Count photons: Poisson with `photons` at white."""
    return random.poisson(image * photons) / photons


def impulse_noise(image: Image, random: np.random.Generator, share: float) -> Image:
    """Set this share of the entries to 0 or 1, either with the same chance."""
    hit = random.random(image.shape) < share
    return np.where(hit, random.integers(0, 2, image.shape).astype(np.float64), image)
