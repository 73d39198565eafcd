"""`shapes`: one to three painted shapes on a ground, 32 x 32 pixels, with everything that can be said of them.

A sample is a pure function of (split, index): its key is the only seed, and the bytes are the same on every machine.
A quarter of the pairs of colour and shape is held out: no image of a training split shows one, though each colour and
each shape occurs there. Objects never hide each other: the discs around them are disjoint.

Source: made for IronCLIP, in the manner of CLEVR (Johnson et al., CVPR 2017, arXiv:1612.06890). Words that a model
reads are spelled in the American way, as most captions on the web are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ironclip.data.bundled._painting import Bools, Coat, Colour, Outline, between, mask_of, paint, pick
from ironclip.errors import ConfigError, ValueRangeError, did_you_mean
from ironclip.randomness import SampleRandom

COLOURS: dict[str, Colour] = {
    "red": (0.86, 0.10, 0.10),
    "green": (0.08, 0.58, 0.18),
    "blue": (0.12, 0.26, 0.88),
    "yellow": (0.96, 0.86, 0.10),
    "purple": (0.48, 0.12, 0.66),
    "pink": (0.98, 0.56, 0.76),
    "white": (0.95, 0.95, 0.95),
    "black": (0.05, 0.05, 0.05),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "crescent")
TEXTURES = ("solid", "striped", "dotted")
SIZES = {"small": (0.16, 0.18), "medium": (0.22, 0.24), "large": (0.28, 0.31)}  # radii as shares of the side
GROUNDS: dict[str, Colour] = {"dark": (0.24, 0.24, 0.24), "gray": (0.50, 0.50, 0.50), "light": (0.76, 0.76, 0.76)}
# The cells of a 3 x 3 grid by rows, and how a caption puts each.
POSITIONS = {
    "top left": "at the top left",
    "top": "at the top",
    "top right": "at the top right",
    "left": "on the left",
    "center": "in the center",
    "right": "on the right",
    "bottom left": "at the bottom left",
    "bottom": "at the bottom",
    "bottom right": "at the bottom right",
}
TEMPLATES = (
    "a picture of a {}.",
    "a drawing of a {}.",
    "a low resolution image of a {}.",
    "a {} on a plain background.",
    "there is a {} in the picture.",
)

Pair = tuple[str, str]
PAIRS: tuple[Pair, ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
CLASS_NAMES = tuple(f"{colour} {shape}" for colour, shape in PAIRS)
# Two diagonals of the table of colours and shapes: each colour and each shape loses two partners of eight.
HELD_OUT = tuple(
    (colour, shape)
    for row, colour in enumerate(COLOURS)
    for column, shape in enumerate(SHAPES)
    if (column - row) % len(SHAPES) in (0, 3)
)
SEEN = tuple(pair for pair in PAIRS if pair not in HELD_OUT)

# Between the centres of two positions lies a strip where no centre falls, so that words fit what is seen.
_LEFT_END, _MIDDLE = 0.385, (0.43, 0.57)
_GAP = 0.02  # between the discs around two objects
_TRIES = 30  # to place an object before all are placed anew
_MARKED = 0.45  # how far an accent is from the colour, on the way to black or white
# What a person would have to search for on a ground; where none is left, the ground is gray.
_HARD_TO_SEE = {"dark": {"black", "purple"}, "gray": {"black", "white"}, "light": {"white", "yellow", "pink"}}
_REPEATED = 0.25  # chance that a further object takes the colour of an earlier one; the same for the shape


@dataclass(frozen=True, kw_only=True)
class Split:
    """What a split holds.

    Attributes:
        count: Samples.
        pairs: The pairs of colour and shape that occur.
        most_objects: Objects in an image are one to this many, each number alike; with one, images have labels.
    """

    count: int
    pairs: tuple[Pair, ...]
    most_objects: int


SPLITS = {
    "train": Split(count=8000, pairs=SEEN, most_objects=1),
    "test": Split(count=2000, pairs=SEEN, most_objects=1),
    "heldout": Split(count=2000, pairs=HELD_OUT, most_objects=1),
    "scenes_train": Split(count=8000, pairs=SEEN, most_objects=3),
    "scenes_test": Split(count=2000, pairs=SEEN, most_objects=3),
}


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One object.

    Attributes:
        colour: A key of `COLOURS`.
        shape: One of `SHAPES`.
        size: A key of `SIZES`.
        texture: One of `TEXTURES`; stripes and dots are of another tone and cover about a third.
        position: A key of `POSITIONS`; where its centre is.
        outline: Its geometry.
    """

    colour: str
    shape: str
    size: str
    texture: str
    position: str
    outline: Outline

    @property
    def name(self) -> str:
        """Return colour and shape, as in `CLASS_NAMES`."""
        return f"{self.colour} {self.shape}"

    @cached_property
    def mask(self) -> Bools:
        """Return its pixels, `[32, 32]`; those of two objects of a scene are disjoint."""
        return mask_of(self.outline)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One image and what it shows.

    Attributes:
        key: `shapes/train/000123`.
        split: A key of `SPLITS`.
        objects: One to three, from top to bottom and left to right by rows of `POSITIONS`.
        background: A key of `GROUNDS`.
    """

    key: str
    split: str
    objects: tuple[SceneObject, ...]
    background: str

    @cached_property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """Return the image, uint8 `[32, 32, 3]`."""
        parts = [(item.outline, _coat(item)) for item in self.objects]
        return paint(parts, GROUNDS[self.background], _stream(self.key, "paint"))


def scene(split: str, index: int) -> Scene:
    """Make a sample; nothing is painted before it is asked for.

    Where images have one object, its pair is that of `label(split, index)`, and the rest is drawn.

    Args:
        split: A key of `SPLITS`.
        index: From 0.

    Raises:
        ConfigError: There is no such split.
        ValueRangeError: The split is not that long.
    """
    spec = _spec(split)
    if not 0 <= index < spec.count:
        raise ValueRangeError(f"sample {index} of shapes/{split}.", f"Its samples are 0 to {spec.count - 1}.")
    key = key_of(split, index)
    random = _stream(key, "scene")
    if spec.most_objects == 1:
        pairs = [PAIRS[label(split, index)]]
    else:
        pairs = _draw_pairs(1 + int(random.random() * spec.most_objects), spec.pairs, random)
    objects = _arrange(pairs, random)
    colours = {item.colour for item in objects}
    fitting = [ground for ground in GROUNDS if not colours & _HARD_TO_SEE[ground]] or ["gray"]
    return Scene(key=key, split=split, objects=objects, background=pick(random, fitting))


def key_of(split: str, index: int) -> str:
    """Return the key of a sample."""
    return f"shapes/{split}/{index:06}"


def label(split: str, index: int) -> int:
    """Return the label of a sample with one object, an index into `CLASS_NAMES`.

    The pairs of the split take turns, so that all are equally frequent to within one.

    Raises:
        ConfigError: There is no such split, or its images have several objects.
    """
    spec = _spec(split)
    if spec.most_objects > 1:
        raise ConfigError(f"images of shapes/{split} show several objects and have no label.", "Use their captions.")
    return PAIRS.index(spec.pairs[index % len(spec.pairs)])


def caption(scene: Scene) -> str:
    """Say everything of a scene that has a word: "a large striped red circle at the top left on a gray background"."""
    parts = [f"a {item.size} {item.texture} {item.name} {POSITIONS[item.position]}" for item in scene.objects]
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"{listed} on a {scene.background} background"


def questions(scene: Scene) -> list[tuple[str, str]]:
    """Ask about a scene, each question once, in an order that says nothing.

    How many objects, and how many of each shape shown and of one shape not shown; which color a shape has and which
    shape a color, where only one object has it; where an object is, where no other has its name; whether there is a
    pair of color and shape. Of the last kind as many are true as false, and a false one is a pair of the same split
    that shares color or shape with an object, each as often.

    Returns:
        Questions with answers: a number in digits, a word of this module's tables, "yes" or "no".
    """
    random = _stream(scene.key, "questions")
    colours, shapes = ([getattr(item, what) for item in scene.objects] for what in ("colour", "shape"))
    names = [item.name for item in scene.objects]
    absent = pick(random, [shape for shape in SHAPES if shape not in shapes])
    asked = [("how many objects are there?", str(len(names)))]
    asked += [(f"how many {_plural(shape)} are there?", str(shapes.count(shape))) for shape in {*shapes, absent}]
    for item in scene.objects:
        if shapes.count(item.shape) == 1:
            asked.append((f"what color is the {item.shape}?", item.colour))
        if colours.count(item.colour) == 1:
            asked.append((f"what shape is the {item.colour} object?", item.shape))
        if names.count(item.name) == 1:
            asked.append((f"where is the {item.name}?", item.position))
    for name in dict.fromkeys(names):
        asked.append((f"is there a {name}?", "yes"))
    for name in _absent_pairs(scene, random):
        asked.append((f"is there a {name}?", "no"))
    ranked = sorted(asked)
    return [ranked[place] for place in np.argsort(random.random(len(ranked)), kind="stable")]


def _absent_pairs(scene: Scene, random: np.random.Generator) -> list[str]:
    """Return, for each name shown, another of the split that is not shown but shares its colour or its shape."""
    shown = {(item.colour, item.shape) for item in scene.objects}
    absent: list[Pair] = []
    for pair in sorted(shown):
        shared = pick(random, (0, 1))
        near = [other for other in SPLITS[scene.split].pairs if other[shared] == pair[shared]]
        absent.append(pick(random, [other for other in near if other not in shown and other not in absent]))
    return [f"{colour} {shape}" for colour, shape in absent]


def _spec(split: str) -> Split:
    if split not in SPLITS:
        raise ConfigError(
            f'no split "{split}" in shapes.{did_you_mean(split, SPLITS)}', f"It has: {', '.join(SPLITS)}."
        )
    return SPLITS[split]


def _stream(key: str, purpose: str) -> np.random.Generator:
    return SampleRandom(seed=0, keys=[key]).generator(0, purpose)


def _draw_pairs(count: int, among: tuple[Pair, ...], random: np.random.Generator) -> list[Pair]:
    """Draw pairs; a further object may repeat an earlier one's colour, shape or both, so that there is to count."""
    drawn = [pick(random, among)]
    while len(drawn) < count:
        colour = pick(random, drawn)[0] if random.random() < _REPEATED else pick(random, tuple(COLOURS))
        shape = pick(random, drawn)[1] if random.random() < _REPEATED else pick(random, SHAPES)
        if (colour, shape) in among:
            drawn.append((colour, shape))
    return drawn


def _arrange(pairs: list[Pair], random: np.random.Generator) -> tuple[SceneObject, ...]:
    """Draw the rest of each object until all have room; where there are more, they are smaller."""
    while True:
        placed: list[SceneObject] = []
        for pair in pairs:
            candidates = (_draw_object(pair, random) for _ in range(_TRIES))
            free = (item for item in candidates if all(_apart(item.outline, other.outline) for other in placed))
            item = next(free, None)
            if item is None:
                break
            placed.append(item)
        else:
            order = list(POSITIONS)
            return tuple(sorted(placed, key=lambda item: (order.index(item.position), item.outline.centre)))


def _draw_object(pair: Pair, random: np.random.Generator) -> SceneObject:
    colour, shape = pair
    size, texture = pick(random, tuple(SIZES)), pick(random, TEXTURES)
    radius, turn = between(random, *SIZES[size]), between(random, -0.12, 0.12)
    row, column = pick(random, range(3)), pick(random, range(3))
    centre = (_place(column, radius, random), _place(row, radius, random))
    return SceneObject(
        colour=colour,
        shape=shape,
        size=size,
        texture=texture,
        position=tuple(POSITIONS)[3 * row + column],
        outline=Outline(shape=shape, centre=centre, radius=radius, turn=turn),
    )


def _place(third: int, radius: float, random: np.random.Generator) -> float:
    """Return where in the first, middle or last part of an axis a centre lies, the whole object inside the image."""
    if third == 1:
        return between(random, *_MIDDLE)
    from_edge = between(random, radius + 0.01, _LEFT_END)
    return from_edge if third == 0 else 1 - from_edge


def _apart(one: Outline, other: Outline) -> bool:
    x, y = one.centre[0] - other.centre[0], one.centre[1] - other.centre[1]
    reach = one.radius + other.radius + _GAP
    return x * x + y * y >= reach * reach


def _coat(item: SceneObject) -> Coat:
    """Return its paint: marks are darker, as lighter ones would make red pink; those of black are lighter."""
    colour, end = COLOURS[item.colour], 1.0 if item.colour == "black" else 0.0
    red, green, blue = (_MARKED * end + (1 - _MARKED) * level for level in colour)
    return Coat(colour=colour, accent=(red, green, blue), texture=item.texture)


def _plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"
