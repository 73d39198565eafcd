"""The suites of published tables: which data sets, under which words; and class names that come with the data."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from torchvision.datasets import Flowers102
from torchvision.models import ResNet18_Weights

from ironclip.data.classes import colliding_names
from ironclip.errors import ConfigError, DataError
from ironclip.suites import load_suite

CLASSES = Path(__file__).parents[2] / "src" / "ironclip" / "suites" / "classes"
SMALL = {"cifar10", "cifar100", "stl10", "tiny-imagenet"}

# Number of classes and of test samples, as the makers of the data state them.
SIZES = {
    "cifar10": (10, 10_000),
    "cifar100": (100, 10_000),
    "stl10": (10, 8_000),
    "sun397": (397, 108_754),
    "food101": (101, 25_250),
    "pets": (37, 3_669),
    "flowers": (102, 6_149),
    "dtd": (47, 1_880),
    "eurosat": (10, 27_000),
    "eurosat-vtab": (10, 5_400),
    "fgvc-aircraft": (100, 3_333),
    "imagenet": (1000, 50_000),
    "caltech101": (101, 8_677),
    "caltech101-vtab": (102, 6_085),
    "caltech256": (257, 30_607),
    "cars": (196, 8_041),
    "pcam": (2, 32_768),
    "tiny-imagenet": (200, 10_000),
    "imagenet-v2": (1000, 10_000),
    "imagenet-r": (200, 30_000),
    "imagenet-sketch": (1000, 50_889),
    "imagenet-a": (200, 7_500),
}
FIFTEEN = {name for name in SIZES if "-" not in name} | {"fgvc-aircraft"}
VTAB = FIFTEEN - {"eurosat", "caltech101"} | {"eurosat-vtab", "caltech101-vtab"}
SUITES = {
    "agft-15": FIFTEEN,
    "pmg-15": FIFTEEN,
    "tga-16": FIFTEEN | {"tiny-imagenet"},
    "ucat-16": FIFTEEN | {"tiny-imagenet"},
    "ironclip-16": VTAB | {"tiny-imagenet"},
    "robustvlm-13": VTAB - {"imagenet", "sun397", "food101", "caltech256"} | {"imagenet-r", "imagenet-sketch"},
    "imagenet-shift": {"imagenet-v2", "imagenet-r", "imagenet-sketch", "imagenet-a"},
}
each = pytest.mark.parametrize("name", SUITES)


@each
def test_holds_the_data_sets_with_their_sizes(name):
    suite = load_suite(name, "data")
    assert {entry.name for entry in suite.entries} == SUITES[name]
    assert len(suite.entries) == int(name.partition("-")[2]) if name[-1].isdigit() else 4
    for entry in suite.entries:
        assert (len(entry.class_names) or entry.spec.class_count, entry.spec.count) == SIZES[entry.name]


@each
def test_images_have_one_size_and_the_adversary_acts_there(name):
    for entry in load_suite(name, "data").entries:
        if entry.name not in SMALL:
            assert entry.source.endswith("size=224")
        else:
            assert entry.source.endswith("resize=224") == (name in ("tga-16", "ucat-16"))


@each
def test_names_and_templates_make_prompts_and_none_is_shared_but_where_said(name):
    known = {"imagenet": ["missile", "sunglasses"]}
    for entry in load_suite(name, "data").entries:
        twice = [word for word, _ in colliding_names(entry.class_names)]
        assert twice == known.get(entry.spec.classes, [])
        assert all("{}" in template for template in entry.spec.templates)
        assert len(set(entry.spec.templates)) == len(entry.spec.templates)


@each
def test_what_nothing_downloads_says_how_it_is_fetched(name):
    for entry in load_suite(name, "data").entries:
        assert ("download=true" in entry.source) != bool(entry.spec.fetch), entry.name


def test_class_lists_say_where_they_are_from():
    for path in CLASSES.glob("*.yaml"):
        assert len(yaml.safe_load(path.read_text(encoding="utf-8"))["source"]) > 20, path


def test_lists_are_in_the_order_of_the_labels():
    """Torchvision has names of its own for two of them."""
    flowers = load_suite("pmg-15", "data").entry("flowers").class_names
    same = [ours.casefold() == theirs.casefold() for ours, theirs in zip(flowers, Flowers102.classes, strict=True)]
    assert sum(same) > 90
    imagenet = load_suite("pmg-15", "data").entry("imagenet").class_names
    theirs = ResNet18_Weights.DEFAULT.meta["categories"]
    alike = [ours == other or {*ours.split()} & {*other.split()} for ours, other in zip(imagenet, theirs, strict=True)]
    assert sum(map(bool, alike)) > 800


def test_renditions_and_hard_images_have_names_of_imagenet_in_its_order():
    entries = load_suite("imagenet-shift", "data")
    imagenet = entries.entry("imagenet-v2").class_names
    for name in ("imagenet-r", "imagenet-a"):
        places = [imagenet.index(word) for word in entries.entry(name).class_names]
        assert places == sorted(places)
    assert entries.entry("imagenet-r").class_names[:2] == ("goldfish", "great white shark")


# Names that come with the data


def write_suite(folder: Path, **changes: object) -> Path:
    data = {
        "name": "made-up",
        "title": "Made up",
        "source": "folder:{data}/images?split=test",
        "classes": "data",
        "class_count": 2,
        "templates": ["a photo of a {}."],
        "fetch": "ask whoever made {data}.",
    }
    path = folder / "made-up.yaml"
    entry = {key: value for key, value in (data | changes).items() if value is not None}
    path.write_text(yaml.safe_dump({"name": "made-up", "version": 1, "title": "Made up", "data": [entry]}))
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("apple_pie", "opera/outdoor".replace("/", "_")):
        folder = tmp_path / "images" / "test" / name
        folder.mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "0.png")
    return tmp_path


def test_names_of_the_data_are_read_as_words(images):
    (entry,) = load_suite(write_suite(images), images).entries
    assert entry.class_names == ()
    opened = entry.open()
    assert opened.class_names == ("apple pie", "opera outdoor")
    assert opened.chance == 1 / 2
    assert opened.dataset[1].label == 1


def test_another_number_of_names_is_refused(images):
    with pytest.raises(DataError, match=r'data set "made-up": 2 class names come with the data, expected 3\.'):
        load_suite(write_suite(images, class_count=3), images).entries[0].open()


def test_class_count_is_part_of_the_hash_and_the_way_to_fetch_is_not(images):
    hashes = [
        load_suite(write_suite(images, **changes), images).sha256
        for changes in ({}, {"class_count": 3}, {"fetch": "elsewhere"})
    ]
    assert hashes[0] == hashes[2] != hashes[1]


def test_missing_data_say_how_to_fetch_them(tmp_path):
    with pytest.raises(DataError, match=rf"To fetch them: ask whoever made {tmp_path}\."):
        load_suite(write_suite(tmp_path), tmp_path).entries[0].open()


def test_names_of_the_data_want_a_count_and_no_selection(tmp_path):
    for changes in ({"class_count": None}, {"keep_labels": "seen"}):
        with pytest.raises(ConfigError, match="classes: data wants class_count, and cannot have keep_labels"):
            load_suite(write_suite(tmp_path, **changes), tmp_path)


def test_the_layout_of_the_mirrors_shards_is_read(tmp_path):
    """0.tar, 1.tar, ... of s0000000.webp and s0000000.cls, in a folder named for the split."""
    folder = tmp_path / "wds_vtab-eurosat" / "test"
    folder.mkdir(parents=True)
    for shard in range(2):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for row in range(2):
                picture = io.BytesIO()
                Image.fromarray(np.full((300, 260, 3), 60 * shard + row, np.uint8)).save(picture, "WEBP")
                for suffix, content in (("webp", picture.getvalue()), ("cls", str(4 * shard + row).encode())):
                    member = tarfile.TarInfo(f"s{2 * shard + row:07d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    entry = load_suite("ironclip-16", tmp_path).entry("eurosat-vtab")
    with pytest.raises(DataError, match=r"4 samples, expected 5400.*\n.*hf download clip-benchmark/wds_vtab-eurosat"):
        entry.open()
    loaded = load_suite(write_suite(tmp_path, source=entry.spec.source, classes="eurosat", class_count=None), tmp_path)
    opened = loaded.entries[0].open()
    assert [opened.dataset[row].label for row in range(4)] == [0, 1, 4, 5]
    assert opened.dataset[0].pixels.shape == (3, 224, 224)
