"""Counts and labels of the development data, where they lie beside the repository."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from ironclip.data import open_dataset

DATA = Path(__file__).parents[3] / "shared" / "data"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the development data (../shared/data) are not here")


@pytest.mark.parametrize(
    ("place", "count", "labels", "side"),
    [
        ("cifar10?split=test", 10_000, 10, 32),
        ("tiny_imagenet?split=test", 10_000, 200, 32),
        ("caltech101?split=test", 4_093, 100, 64),
        ("caltech101?split=train", 3_215, 80, 64),
        ("flickr8k?split=test", 1_000, 0, 64),
    ],
)
def test_counts(place: str, count: int, labels: int, side: int) -> None:
    dataset = open_dataset(f"wds:{DATA}/{place}", strict=True)
    assert len(dataset) == len(set(dataset.keys)) == count
    assert len(set(dataset.labels or ())) == labels
    for position in (0, count // 2, count - 1):
        assert dataset[position].pixels.shape == (3, side, side)


def test_training_data_hold_no_unseen_class() -> None:
    unseen = json.loads((DATA / "unseen_classes.json").read_text(encoding="utf-8"))
    for name in ("tiny_imagenet", "caltech101"):
        dataset = open_dataset(f"wds:{DATA}/{name}?split=train", strict=True)
        assert dataset.labels is not None
        assert not set(dataset.labels) & {entry["label"] for entry in unseen[name]}
        assert all(key.startswith(f"{name}/train/") for key in dataset.keys)


def test_classes_are_balanced_where_the_data_say_so() -> None:
    dataset = open_dataset(f"wds:{DATA}/cifar10?split=test")
    assert set(Counter(dataset.labels).values()) == {1000}
    assert dataset.class_names is not None
    assert dataset.class_names[6] == "frog"
    assert dataset.templates is not None
    assert len(dataset.templates) == 5


def test_captions() -> None:
    dataset = open_dataset(f"wds:{DATA}/flickr8k?split=test")
    assert dataset.labels is None
    assert {len(dataset[position].captions) for position in range(0, 1000, 100)} == {5}


def test_caltech_resized_is_8_bit() -> None:
    dataset = open_dataset(f"wds:{DATA}/caltech101?split=test&resize=32")
    pixels = dataset[17].pixels.double() * 255
    assert pixels.shape == (3, 32, 32)
    assert (pixels - pixels.round()).abs().max() < 1e-4
