"""Weather; images are float64 `[H, W, 3]` in [0, 1], and so are results, not yet clipped."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ironclip.attacks.natural.blur import enlarged, smear

Image = npt.NDArray[np.float64]
_GREY = np.array([0.299, 0.587, 0.114])
_ICE = np.array([0.93, 0.97, 1.0])


def snow(
    image: Image,
    random: np.random.Generator,
    mean: float,
    deviation: float,
    zoom: float,
    threshold: float,
    radius: int,
    blur: float,
    share: float,
) -> Image:
    """Whiten the image and let enlarged, smeared flakes fall on it, twice."""
    flakes = enlarged(random.normal(mean, deviation, image.shape[:2]), zoom)
    flakes = np.where(flakes < threshold, 0, flakes).clip(0, 1)
    flakes = smear(flakes, radius, blur, random.uniform(-135, -45))[:, :, None]
    white = np.maximum(image, (image @ _GREY)[:, :, None] * 1.5 + 0.5)
    snowy: Image = share * image + (1 - share) * white + flakes + np.rot90(flakes, k=2)
    return snowy


def frost(image: Image, random: np.random.Generator, image_share: float, frost_share: float) -> Image:
    """Lay ice over the image.

    The ice is drawn here: ridges of a fractal, where the original has crops of six photographs of other people's.
    """
    height, width = image.shape[:2]
    fractal = plasma(_power_of_two(max(height, width)), 2.2, random)[:height, :width]
    fine = plasma(_power_of_two(max(height, width)), 1.4, random)[:height, :width]
    ridges = (1 - np.abs(2 * fractal - 1)) ** 3
    ice = (0.25 + 0.55 * ridges + 0.35 * (fine > 0.6) * fine).clip(0, 1)
    icy: Image = image_share * image + frost_share * ice[:, :, None] * _ICE
    return icy


def fog(image: Image, random: np.random.Generator, density: float, decay: float) -> Image:
    """Add a fractal cloud and bring the result back to the image's own range."""
    height, width = image.shape[:2]
    brightest = image.max()
    cloud = plasma(_power_of_two(max(height, width)), decay, random)[:height, :width]
    if brightest + density == 0:
        return image
    foggy: Image = (image + density * cloud[:, :, None]) * brightest / (brightest + density)
    return foggy


def plasma(side: int, decay: float, random: np.random.Generator) -> Image:
    """Draw a fractal by diamonds and squares, `[side, side]` from 0 to 1, the left edge joining the right one.

    Args:
        side: A power of two.
        decay: By how much the roughness falls from one scale to the next.
        random: Where draws come from.
    """
    heights, step, rough = np.zeros((side, side)), side, 100.0

    def shaken(total: Image, roughness: float) -> Image:
        return total / 4 + roughness * random.uniform(-roughness, roughness, total.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=0)
        heights[half::step, half::step] = shaken(pairs + np.roll(pairs, -1, axis=1), rough)
        middles, corners = heights[half::step, half::step], heights[::step, ::step]
        level = middles + np.roll(middles, 1, axis=0) + corners + np.roll(corners, -1, axis=1)
        upright = middles + np.roll(middles, 1, axis=1) + corners + np.roll(corners, -1, axis=0)
        heights[::step, half::step] = shaken(level, rough)
        heights[half::step, ::step] = shaken(upright, rough)
        step, rough = half, rough / decay
    heights -= heights.min()
    return np.asarray(heights / max(heights.max(), 1e-12))


def _power_of_two(length: int) -> int:
    return 1 << max(length - 1, 1).bit_length()
