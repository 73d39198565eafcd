"""Draw scenes of `shapes`: what is inside an outline, and the pixels.

Every step is an operation that IEEE 754 rounds in one way (+ - * / and comparison; no sine, no logarithm, no matrix
product, no sum over an axis of floats), so that pixels are the same bytes on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

SIDE = 32
_FINE = 4  # points a pixel and axis at which outline and texture are looked up

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Colour = tuple[float, float, float]
_T = TypeVar("_T")

# Corners in the unit disc, y downwards, centred on the centroid.
_POLYGONS: dict[str, tuple[tuple[float, float], ...]] = {
    "square": ((-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7)),
    "triangle": ((0, -0.98), (0.85, 0.49), (-0.85, 0.49)),
    "star": (
        *((0, -1), (0.259, -0.356), (0.951, -0.309), (0.419, 0.136), (0.588, 0.809)),
        *((0, 0.44), (-0.588, 0.809), (-0.419, 0.136), (-0.951, -0.309), (-0.259, -0.356)),
    ),
    "cross": (
        *((-0.33, -0.94), (0.33, -0.94), (0.33, -0.33), (0.94, -0.33), (0.94, 0.33), (0.33, 0.33)),
        *((0.33, 0.94), (-0.33, 0.94), (-0.33, 0.33), (-0.94, 0.33), (-0.94, -0.33), (-0.33, -0.33)),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Outline:
    """Where an object is.

    Attributes:
        shape: Its form.
        centre: x from the left and y from the top, as shares of the side.
        radius: Of the disc that holds the object, as a share of the side.
        turn: Tangent of half the angle by which it is turned.
    """

    shape: str
    centre: tuple[float, float]
    radius: float
    turn: float


@dataclass(frozen=True, kw_only=True)
class Coat:
    """What an object is painted with.

    Attributes:
        colour: Its colour, RGB in [0, 1].
        accent: The colour of its stripes or dots.
        texture: "solid", "striped" or "dotted".
    """

    colour: Colour
    accent: Colour
    texture: str


def pick(random: np.random.Generator, among: Sequence[_T]) -> _T:
    """Draw one of the given, all alike."""
    return among[int(random.random() * len(among))]


def between(random: np.random.Generator, low: float, high: float) -> float:
    """Draw a number from [low, high)."""
    return low + (high - low) * random.random()


def mask_of(outline: Outline) -> Bools:
    """Return the pixels of which at least half lies inside, `[32, 32]`."""
    return _share(_fine_mask(outline)) >= 0.5


def paint(
    parts: Sequence[tuple[Outline, Coat]], background: Colour, random: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Paint objects on a background; light falls from one side, the ground is blotchy, every pixel has its noise.

    Args:
        parts: Objects that do not hide each other.
        background: Its mean colour, RGB in [0, 1].
        random: Everything that no word describes is drawn from it.

    Returns:
        uint8 `[32, 32, 3]`.
    """
    image = np.asarray(background) + _blotches(random, 0.07)[:, :, None] + np.asarray(_jitter(random, 0.04))
    for outline, coat in parts:
        inside = _fine_mask(outline)
        marked = inside & _marks(coat.texture, random)
        tint = np.asarray(_jitter(random, 0.05))
        body, marks = _share(inside & ~marked)[:, :, None], _share(marked)[:, :, None]
        image = image * (1 - body - marks) + body * (np.asarray(coat.colour) + tint) + marks * np.asarray(coat.accent)
    noise = 0.04 * (2 * random.random((SIDE, SIDE, 3)) - 1)
    lit = (image + noise) * (1 + _slope(random, 0.12)[:, :, None])
    levels: npt.NDArray[np.uint8] = np.rint(255 * np.clip(lit, 0, 1)).astype(np.uint8)
    return levels


def _fine_mask(outline: Outline) -> Bools:
    """Return which points lie inside, `[SIDE * _FINE, SIDE * _FINE]`."""
    count = SIDE * _FINE
    spans = []
    for centre in outline.centre:
        first = max(0, int((centre - outline.radius) * count))
        spans.append((first, min(count, int((centre + outline.radius) * count) + 2)))
    (left, right), (top, bottom) = spans
    u = ((np.arange(left, right) + 0.5) / count - outline.centre[0])[None, :] / outline.radius
    v = ((np.arange(top, bottom) + 0.5) / count - outline.centre[1])[:, None] / outline.radius
    square = 1 + outline.turn * outline.turn
    cosine, sine = (2 - square) / square, 2 * outline.turn / square
    mask = np.zeros((count, count), dtype=np.bool_)
    mask[top:bottom, left:right] = _inside(outline.shape, u * cosine + v * sine, v * cosine - u * sine)
    return mask


def _inside(shape: str, u: Floats, v: Floats) -> Bools:
    """Return which points are inside a shape that fills the unit disc."""
    if shape in _POLYGONS:
        return _inside_polygon(_POLYGONS[shape], u, v)
    squares = u * u + v * v
    if shape == "circle":
        return squares <= 0.9 * 0.9
    if shape == "ring":
        return (squares <= 0.95 * 0.95) & (squares >= 0.5 * 0.5)
    if shape == "crescent":
        disc, bite = u - 0.265, u - 0.655
        return (disc * disc + v * v <= 0.78 * 0.78) & (bite * bite + v * v > 0.575 * 0.575)
    if shape == "heart":
        x, y = 1.3 * u, 0.293 - 1.3 * v
        ball = x * x + y * y - 1
        return ball * ball * ball <= x * x * y * y * y
    raise KeyError(shape)


def _inside_polygon(corners: Sequence[tuple[float, float]], u: Floats, v: Floats) -> Bools:
    """Return the points from which a ray to the right crosses the polygon an odd number of times."""
    inside = np.zeros(np.broadcast_shapes(u.shape, v.shape), dtype=np.bool_)
    for (ax, ay), (bx, by) in zip(corners, (*corners[1:], corners[0]), strict=True):
        if ay != by:
            inside ^= ((ay > v) != (by > v)) & (u < ax + (v - ay) * ((bx - ax) / (by - ay)))
    return inside


def _share(points: Bools) -> Floats:
    """Return the share of each pixel's points that are true, `[32, 32]`; counted in whole numbers."""
    counts: npt.NDArray[np.int64] = points.reshape(SIDE, _FINE, SIDE, _FINE).sum(axis=(1, 3), dtype=np.int64)
    return counts / (_FINE * _FINE)


def _marks(texture: str, random: np.random.Generator) -> Bools:
    """Return where the accent goes, in points; stripes run one of four ways, dots sit on a square grid."""
    fine = np.arange(SIDE * _FINE)
    x, y = fine[None, :], fine[:, None]
    period = pick(random, (4, 5)) * _FINE
    along, phase_x, phase_y = pick(random, ("x", "y", "up", "down")), pick(random, range(20)), pick(random, range(20))
    if texture == "striped":
        ways = {"x": x + 0 * y, "y": y + 0 * x, "up": (x + y) * 3 // 4, "down": (x - y) * 3 // 4}
        return (ways[along] + phase_x) % period < 0.36 * period
    if texture == "dotted":
        right, down = (x + phase_x) % period - period / 2, (y + phase_y) % period - period / 2
        return right * right + down * down < (0.31 * period) * (0.31 * period)
    return np.zeros((SIDE * _FINE, SIDE * _FINE), dtype=np.bool_)


def _jitter(random: np.random.Generator, width: float) -> Colour:
    return between(random, -width, width), between(random, -width, width), between(random, -width, width)


def _slope(random: np.random.Generator, height: float) -> Floats:
    """Return a plane over the image, `[32, 32]` in [-height, height]."""
    line = height / 2 * (np.arange(SIDE) * 2 - (SIDE - 1)) / (SIDE - 1)
    return between(random, -1, 1) * line[None, :] + between(random, -1, 1) * line[:, None]


def _blotches(random: np.random.Generator, height: float) -> Floats:
    """Return 5 x 5 random heights with straight lines between them, `[32, 32]` in [-height, height]."""
    knots = height * (2 * random.random((5, 5)) - 1)
    place = np.arange(SIDE) * 4 / SIDE
    below = place.astype(np.int64)
    rest = place - below
    rows = knots[below] * (1 - rest)[:, None] + knots[below + 1] * rest[:, None]
    return rows[:, below] * (1 - rest) + rows[:, below + 1] * rest
