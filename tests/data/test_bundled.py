"""The bundled sets as a source; the digits."""

from __future__ import annotations

import hashlib
import re
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from ironclip.data import open_dataset
from ironclip.data.bundled import digits, shapes
from ironclip.data.bundled.shapes import caption, scene
from ironclip.data.classes import colliding_names, fill_templates
from ironclip.data.order import limit
from ironclip.errors import ConfigError

# --- digits


def test_digits_are_scikit_learns() -> None:
    levels, labels = load_digits(return_X_y=True)
    numbers = []
    for split, count in (("train", 1297), ("test", 500)):
        dataset = open_dataset(f"bundled:digits?split={split}", strict=True)
        assert len(dataset) == len(set(dataset.keys)) == count
        assert dataset.class_names is not None
        assert list(dataset.class_names)[7] == "seven"
        assert min(Counter(dataset.labels).values()) > 0.06 * count
        for position in range(0, count, 50):
            sample = dataset[position]
            name, part, number = sample.key.split("/")
            assert (name, part, sample.label) == ("digits", split, labels[int(number)])
            eight = np.rint(levels[int(number)].reshape(8, 8) * 255 / 16).astype(np.uint8)
            image = np.asarray(Image.fromarray(eight).resize((32, 32), Image.Resampling.BICUBIC), dtype=np.float32)
            assert torch.equal(sample.pixels, torch.from_numpy(image / np.float32(255)).expand(3, 32, 32))
        numbers += [int(key.split("/")[2]) for key in dataset.keys]
    assert sorted(numbers) == list(range(1797))


def test_the_split_of_digits_is_by_hash_of_the_number() -> None:
    ranks = {}
    for number in range(1797):
        hashed = hashlib.blake2b(f"digits split\x1f{number}".encode(), digest_size=16).digest()
        ranks[number] = int.from_bytes(hashed[:8], "big")
    lowest = sorted(sorted(ranks, key=ranks.__getitem__)[:500])
    assert [int(key[-6:]) for key in open_dataset("bundled:digits?split=test").keys] == lowest


# --- the reader


@pytest.mark.parametrize(
    ("name", "split", "count"),
    [("digits", "test", 500), *((("shapes", split, spec.count)) for split, spec in shapes.SPLITS.items())],
)
def test_opens(name: str, split: str, count: int) -> None:
    source = f"bundled:{name}?split={split}"
    dataset = open_dataset(source, strict=True)
    assert dataset.source == source
    assert len(dataset) == len(set(dataset.keys)) == count
    assert dataset.fingerprint == open_dataset(source).fingerprint
    for position in (0, count - 1, -1):
        sample = dataset[position]
        assert sample.key == dataset.keys[position]
        assert sample.key.startswith(f"{name}/{split}/")
        assert sample.pixels.shape == (3, 32, 32)
        assert sample.label == (None if dataset.labels is None else dataset.labels[position])
    with pytest.raises(IndexError):
        dataset[count]


def test_every_split_has_a_fingerprint_of_its_own() -> None:
    sources = [f"bundled:shapes?split={split}" for split in shapes.SPLITS]
    sources += ["bundled:digits?split=train", "bundled:digits?split=test", "bundled:digits?split=test&resize=8"]
    assert len({open_dataset(source).fingerprint for source in sources}) == len(sources)


def test_the_fingerprint_of_shapes_follows_the_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "bundled:shapes?split=heldout"
    before = open_dataset(source).fingerprint
    for name, value in (("SIZES", shapes.SIZES | {"small": (0.1, 0.12)}), ("_MARKED", 0.3)):
        with monkeypatch.context() as patch:
            patch.setattr(shapes, name, value)
            assert open_dataset(source).fingerprint != before
    with monkeypatch.context() as patch:
        patch.setitem(shapes.POSITIONS, "top", "up there")  # the words count as well as the pixels
        assert open_dataset(source).fingerprint != before


def test_resizing() -> None:
    assert open_dataset("bundled:shapes?split=test&resize=48")[3].pixels.shape == (3, 48, 48)
    assert open_dataset("bundled:digits?split=test&size=16")[3].pixels.shape == (3, 16, 16)


def test_a_sample_of_shapes_is_its_scene() -> None:
    for split in ("heldout", "scenes_test"):
        dataset = open_dataset(f"bundled:shapes?split={split}")
        for position in (0, 7, 1999):
            sample, made = dataset[position], scene(split, position)
            assert sample.captions == (caption(made),)
            assert torch.equal((sample.pixels * 255).round().permute(1, 2, 0), torch.from_numpy(made.pixels).float())
            assert (dataset.class_names is None) == (dataset.templates is None) == (dataset.labels is None)
            if sample.label is not None and dataset.class_names is not None:
                assert dataset.class_names[sample.label] in sample.captions[0]
    assert limit(dataset, 5)[2].captions


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("bundled:shape?split=test", r'no bundled set "shape". Did you mean "shapes"\?\nThere are: digits, shapes'),
        ("bundled:digits", r"bundled:digits has several splits: train, test.\nSay which one, such as \?split=test"),
        ("bundled:digits?split=heldout", r'no split "heldout" in bundled:digits.\nIt has: train, test'),
        ("bundled:shapes?split=held_out", r'no split "held_out" .* Did you mean "heldout"(.|\n)*scenes_train'),
        ("bundled:shapes?split=test&root=x", r'unknown key "root"'),
        ("bundled:shapes?split=test&resize=4&size=4", "exclude each other"),
    ],
)
def test_what_is_wrong_with_a_source(source: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        open_dataset(source)


@pytest.mark.parametrize("module", [digits, shapes])
def test_prompts_read_well(module: object) -> None:
    names, templates = module.CLASS_NAMES, module.TEMPLATES
    assert colliding_names(names) == []
    for name in names:
        for prompt in fill_templates(name, templates):
            assert not re.search(r"\ba [aeiou]", prompt)
