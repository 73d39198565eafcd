"""The shapes: the same everywhere, and true to their words."""

from __future__ import annotations

import colorsys
import hashlib
import json
import math
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from matplotlib.path import Path as Polygon

from ironclip.data import open_dataset
from ironclip.data.bundled import shapes
from ironclip.data.bundled._painting import Outline, mask_of
from ironclip.data.bundled.shapes import Scene, caption, questions, scene
from ironclip.errors import ConfigError, ValueRangeError

SOURCE = Path(__file__).parents[2] / "src"

# --- the same bytes, whoever asks and when


def test_another_process_in_another_order_makes_the_same() -> None:
    code = f"""
import sys; sys.path.insert(0, {str(SOURCE)!r})
import hashlib, json, numpy
from ironclip.data.bundled.shapes import caption, questions, scene
numpy.random.seed(5)
made = {{}}
for index in range(29, -1, -1):
    one = scene("scenes_test", index)
    made[index] = [hashlib.sha256(one.pixels.tobytes()).hexdigest(), caption(one), questions(one)]
print(json.dumps(made))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    there = json.loads(done.stdout)
    for index in range(30):
        one = scene("scenes_test", index)
        asked = [list(pair) for pair in questions(one)]
        assert there[str(index)] == [hashlib.sha256(one.pixels.tobytes()).hexdigest(), caption(one), asked]


def random_states() -> tuple[str, list[int]]:
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002  # the global state is what is asked for
    return json.dumps(numpy_state, default=np.ndarray.tolist), torch.get_rng_state().tolist()


def test_global_random_state_is_neither_read_nor_written() -> None:
    before = random_states()
    made = scene("scenes_train", 3)
    assert made.pixels.any()
    assert questions(made)
    assert random_states() == before


def test_samples_differ() -> None:
    some = [scene(split, index).pixels.tobytes() for split in shapes.SPLITS for index in range(20)]
    assert len(set(some)) == len(some)


def test_no_such_scene() -> None:
    with pytest.raises(ValueRangeError, match=r"sample 2000 of shapes/test.\nIts samples are 0 to 1999"):
        scene("test", 2000)
    with pytest.raises(ValueRangeError, match="sample -1 of"):
        scene("test", -1)
    with pytest.raises(ConfigError, match=r'no split "tests" in shapes. Did you mean "test"'):
        scene("tests", 0)
    with pytest.raises(ConfigError, match=r"several objects and have no label.\nUse their captions"):
        shapes.label("scenes_test", 0)


def test_the_generator_is_fast() -> None:
    for split in ("train", "scenes_train"):
        scene(split, 0)
        start = time.process_time()
        for index in range(100):
            assert scene(split, index).pixels.any()
        assert (time.process_time() - start) / 100 * 8000 < 40, "seconds for a training split"


# --- held-out combinations, balance


def test_held_out_combinations() -> None:
    held_out = set(shapes.HELD_OUT)
    assert len(shapes.PAIRS) == len(shapes.CLASS_NAMES) == 64
    assert len(held_out) == 16
    for part, each in ((held_out, 2), (set(shapes.SEEN), 6)):
        assert Counter(colour for colour, _ in part) == dict.fromkeys(shapes.COLOURS, each)
        assert Counter(shape for _, shape in part) == dict.fromkeys(shapes.SHAPES, each)
    assert held_out.isdisjoint(shapes.SEEN)


@pytest.mark.parametrize("split", shapes.SPLITS)
def test_which_combinations_a_split_shows(split: str) -> None:
    allowed = {" ".join(pair) for pair in (shapes.HELD_OUT if split == "heldout" else shapes.SEEN)}
    shown = {read.name for index in range(shapes.SPLITS[split].count) for read in described(caption_of(split, index))}
    assert shown == allowed


@pytest.mark.parametrize(("split", "classes"), [("train", 48), ("test", 48), ("heldout", 16)])
def test_labels_are_balanced_and_name_what_is_shown(split: str, classes: int) -> None:
    dataset = open_dataset(f"bundled:shapes?split={split}")
    assert dataset.class_names is not None
    counts = Counter(dataset.labels)
    assert len(counts) == classes
    assert max(counts.values()) - min(counts.values()) <= 1
    for index in range(0, len(dataset), 37):
        (shown,) = described(caption_of(split, index))
        assert shown.name == dataset.class_names[dataset.labels[index]]


def test_what_has_no_label_is_drawn_evenly() -> None:
    single = [described(caption_of("train", index))[0] for index in range(8000)]
    for what, words in (("size", shapes.SIZES), ("texture", shapes.TEXTURES), ("position", shapes.POSITIONS)):
        counts = Counter(getattr(shown, what) for shown in single)
        assert counts.keys() == set(words)
        expected = 8000 / len(words)
        assert all(abs(count - expected) < 4.5 * math.sqrt(expected) for count in counts.values())
    numbers = Counter(len(described(caption_of("scenes_train", index))) for index in range(3000))
    assert numbers.keys() == {1, 2, 3}
    assert min(numbers.values()) > 900


# --- words against pixels


def colour_name(red: float, green: float, blue: float) -> str:
    """Name a colour by its hue, as people do; the shades between black and white are "gray"."""
    hue, _, value = colorsys.rgb_to_hsv(red, green, blue)
    if value - min(red, green, blue) < 0.17:
        return "black" if value < 0.3 else "white" if value > 0.68 else "gray"
    ends = {20: "red", 75: "yellow", 180: "green", 255: "blue", 310: "purple", 345: "pink", 361: "red"}
    return next(name for end, name in ends.items() if 360 * hue < end)


class Read(NamedTuple):
    """One object as a caption describes it."""

    size: str
    texture: str
    colour: str
    shape: str
    position: str

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


def described(text: str) -> list[Read]:
    """Read a caption back."""
    objects, _, ground = text.rpartition(" on a ")
    assert re.fullmatch(r"(dark|gray|light) background", ground)
    found = []
    for part in re.split(r", | and ", objects):
        words = re.fullmatch(r"a (\w+) (\w+) (\w+) (\w+) (?:at|on|in) the ([a-z ]+)", part)
        assert words, text
        found.append(Read(*words.groups()))
    return found


def caption_of(split: str, index: int) -> str:
    return caption(scene(split, index))


def some_scenes(count: int) -> list[Scene]:
    return [scene(split, index) for split in ("train", "heldout", "scenes_test") for index in range(count)]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return some_scenes(240)


def test_captions_name_every_object_once(scenes: list[Scene]) -> None:
    for made in scenes:
        words = described(caption(made))
        assert words == [Read(o.size, o.texture, o.colour, o.shape, o.position) for o in made.objects]


def test_the_commonest_colour_inside_a_mask_is_the_named_one(scenes: list[Scene]) -> None:
    for made in scenes:
        for item, words in zip(made.objects, described(caption(made)), strict=True):
            named = Counter(colour_name(*levels) for levels in (made.pixels[item.mask] / 255).tolist())
            named.pop("gray", None)  # marks on black and white, and no object's colour
            assert named.most_common(1)[0][0] == words.colour, f"{made.key}: {words}, {named}"


def test_positions_are_where_the_masks_are(scenes: list[Scene]) -> None:
    for made in scenes:
        for item, words in zip(made.objects, described(caption(made)), strict=True):
            y, x = ((np.argwhere(item.mask) + 0.5).mean(axis=0) / 32).tolist()
            row = "top" if y < 0.4075 else "bottom" if y > 0.5925 else ""
            column = "left" if x < 0.4075 else "right" if x > 0.5925 else ""
            assert words.position == (f"{row} {column}".strip() or "center"), made.key


def test_sizes_can_be_told_apart(scenes: list[Scene]) -> None:
    areas: dict[tuple[str, str], list[int]] = defaultdict(list)
    for made in scenes:
        for item in made.objects:
            areas[item.shape, item.size].append(int(item.mask.sum()))
    for shape in shapes.SHAPES:
        assert max(areas[shape, "small"]) < min(areas[shape, "medium"])
        assert max(areas[shape, "medium"]) < min(areas[shape, "large"])
        assert min(areas[shape, "small"]) >= 18


def test_stripes_and_dots_can_be_seen(scenes: list[Scene]) -> None:
    spread: dict[str, list[float]] = {"solid": [], "striped": [], "dotted": []}
    for made in scenes:
        for item in made.objects:
            inner = item.mask.copy()
            for axis in (0, 1):
                inner &= np.roll(item.mask, 1, axis) & np.roll(item.mask, -1, axis)
            if inner.sum() >= 12:
                levels = made.pixels[inner].astype(np.float64)
                low, high = np.quantile(levels, (0.05, 0.95), axis=0)
                spread[item.texture].append(float((high - low).max()))
    assert max(spread["solid"]) < 30 < 40 < min(spread["striped"] + spread["dotted"])


def test_grounds_are_as_light_as_they_are_called(scenes: list[Scene]) -> None:
    seen = set()
    for made in scenes:
        outside = ~np.logical_or.reduce([item.mask for item in made.objects])
        level = float(np.median(made.pixels[outside]))
        word = "dark" if level < 95 else "light" if level > 160 else "gray"
        assert caption(made).endswith(f" on a {word} background"), made.key
        seen.add(word)
    assert len(seen) == 3


def test_no_object_hides_another_or_leaves_the_image(scenes: list[Scene]) -> None:
    for made in scenes:
        assert np.sum([item.mask for item in made.objects], axis=0).max() == 1
        for item in made.objects:
            border = np.concatenate([item.mask[0], item.mask[-1], item.mask[:, 0], item.mask[:, -1]])
            assert not border.any(), made.key


def test_masks_are_what_was_painted() -> None:
    """Inside its mask an image differs from the ground around it, and nowhere else."""
    for index in range(60):
        made = scene("scenes_test", index)
        masks = np.logical_or.reduce([item.mask for item in made.objects])
        bare = shapes.paint([], shapes.GROUNDS[made.background], shapes._stream(made.key, "paint")).astype(int)
        ground = np.median(bare, axis=(0, 1))
        away = np.abs(made.pixels.astype(int) - ground).max(axis=2) > 60
        near = np.zeros_like(masks)
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                near |= np.roll(masks, (dy, dx), (0, 1))
        assert not (away & ~near).any()


# --- outlines against other implementations

STAR = [(math.sin(k * math.pi / 5), -math.cos(k * math.pi / 5), 1 if k % 2 == 0 else 0.44) for k in range(10)]
CORNERS = {
    "square": [(-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7)],
    "triangle": [(0.98 * math.sin(a), -0.98 * math.cos(a)) for a in (0, 2 * math.pi / 3, 4 * math.pi / 3)],
    "star": [(x * far, y * far) for x, y, far in STAR],
}
AREAS = {
    "circle": math.pi * 0.9**2,
    "square": 1.4**2,
    "triangle": 3 * math.sqrt(3) / 4 * 0.98**2,
    "star": 10 * 0.5 * 0.44 * math.sin(math.pi / 5),
    "cross": 4 * 0.94 * 0.66 - 0.66**2,
    "ring": math.pi * (0.95**2 - 0.5**2),
}


@pytest.mark.parametrize("shape", CORNERS)
@pytest.mark.parametrize("turn", [-0.12, 0.0, 0.07])
def test_polygons_as_matplotlib_has_them(shape: str, turn: float) -> None:
    centre, radius, angle = (0.45, 0.52), 0.4, 2 * math.atan(turn)
    corners = [
        (
            centre[0] + radius * (x * math.cos(angle) - y * math.sin(angle)),
            centre[1] + radius * (x * math.sin(angle) + y * math.cos(angle)),
        )
        for x, y in CORNERS[shape]
    ]
    axis = (np.arange(32 * 8) + 0.5) / (32 * 8)
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    share = Polygon(corners, closed=False).contains_points(points).reshape(32, 8, 32, 8).mean(axis=(1, 3))
    mask = mask_of(Outline(shape=shape, centre=centre, radius=radius, turn=turn))
    assert (mask[share > 0.7]).all()
    assert not (mask[share < 0.3]).any()


@pytest.mark.parametrize("shape", shapes.SHAPES)
def test_area_centroid_and_symmetry(shape: str) -> None:
    mask = mask_of(Outline(shape=shape, centre=(0.5, 0.5), radius=0.49, turn=0.0))
    area = mask.sum() / (32 * 0.49) ** 2
    if shape in AREAS:
        assert area == pytest.approx(AREAS[shape], rel=0.045)
    assert (np.argwhere(mask).mean(axis=0) - 15.5) / (32 * 0.49) == pytest.approx([0, 0], abs=0.02)
    mirrored = mask[::-1] if shape == "crescent" else mask[:, ::-1]
    assert (mask == mirrored).all()
    y, x = np.argwhere(mask).T - 15.5
    assert np.hypot(x, y).max() <= 32 * 0.49 + 0.7


def test_shapes_have_their_hallmarks() -> None:
    """A ring has its hole, a crescent its bite, a heart its notch and its tip."""
    masks = {shape: mask_of(Outline(shape=shape, centre=(0.5, 0.5), radius=0.45, turn=0.0)) for shape in shapes.SHAPES}
    ring, crescent, heart = masks["ring"], masks["crescent"], masks["heart"]
    assert not ring[14:18, 14:18].any()
    assert ring[15, :8].any()
    assert ring[15, 24:].any()
    assert not crescent[15, 17:].any()
    assert crescent[:8, 17:].any()
    assert crescent[24:, 17:].any()
    top, bottom = np.argwhere(heart)[[0, -1], 0]
    assert heart[top, :15].any()
    assert not heart[top, 15:17].any()
    assert heart[top, 17:].any()
    assert heart[bottom].sum() <= 4
    assert all(masks[shape][15:17, 15:17].all() for shape in ("circle", "square", "triangle", "star", "cross", "heart"))


# --- questions


def answered(question: str, seen: list[Read]) -> str:
    """Answer from the caption."""
    if question == "how many objects are there?":
        return str(len(seen))
    if words := re.fullmatch(r"how many (\w+) are there\?", question):
        plurals = {shape: shape + ("es" if shape == "cross" else "s") for shape in shapes.SHAPES}
        return str(sum(plurals[one.shape] == words[1] for one in seen))
    if words := re.fullmatch(r"what color is the (\w+)\?", question):
        (one,) = [one for one in seen if one.shape == words[1]]
        return one.colour
    if words := re.fullmatch(r"what shape is the (\w+) object\?", question):
        (one,) = [one for one in seen if one.colour == words[1]]
        return one.shape
    if words := re.fullmatch(r"where is the (\w+ \w+)\?", question):
        (one,) = [one for one in seen if one.name == words[1]]
        return one.position
    words = re.fullmatch(r"is there a (\w+ \w+)\?", question)
    assert words, question
    return "yes" if words[1] in [one.name for one in seen] else "no"


def test_answers_are_right(scenes: list[Scene]) -> None:
    kinds = Counter()
    for made in scenes:
        seen, asked = described(caption(made)), questions(made)
        assert len({question for question, _ in asked}) == len(asked)
        for question, answer in asked:
            assert answer == answered(question, seen), made.key
            kinds[question.split()[0] + answer * (answer in ("yes", "no"))] += 1
        said = Counter(answer for question, answer in asked if question.startswith("is there"))
        assert said["yes"] == said["no"] == len({one.name for one in seen})
    assert kinds.keys() == {"how", "what", "where", "isyes", "isno"}


def test_a_pair_is_asked_for_as_often_in_vain() -> None:
    """Without the image nothing speaks for yes or no, and held-out pairs are no subject in training."""
    said: dict[str, Counter[str]] = defaultdict(Counter)
    order = []
    for index in range(2500):
        asked = questions(scene("scenes_train", index))
        for question, answer in asked:
            if question.startswith("is there"):
                said[question[11:-1]][answer] += 1
        order.append(asked[0][1] == "yes")
    assert set(said) == {" ".join(pair) for pair in shapes.SEEN}
    for name, counts in said.items():
        total = counts.total()
        assert abs(counts["yes"] - total / 2) < 4.5 * math.sqrt(total) / 2, name
    assert 0.05 < np.mean(order) < 0.35  # the first place says nothing


def test_a_false_question_is_near_the_truth(scenes: list[Scene]) -> None:
    shared = Counter()
    for made in scenes:
        seen = described(caption(made))
        for question, answer in questions(made):
            if answer == "no":
                colour, shape = question[11:-1].split()
                by_colour, by_shape = colour in [o.colour for o in seen], shape in [o.shape for o in seen]
                assert by_colour or by_shape
                if len(seen) == 1:
                    shared["colour" if by_colour else "shape"] += 1
    assert abs(shared["colour"] - shared["shape"]) < 4.5 * math.sqrt(shared.total())
