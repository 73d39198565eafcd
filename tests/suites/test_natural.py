"""The suite `natural` as it is shipped, and against the development data where they are here."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import yaml

from ironclip.data.classes import colliding_names
from ironclip.data.order import limit
from ironclip.suites import load_suite, suite_names

REPOSITORY = Path(__file__).parents[2]
SUITES = REPOSITORY / "src" / "ironclip" / "suites"
DATA = REPOSITORY.parent / "shared" / "data"

# A suite that changes without a new version fails here; a new version gets a new line.
HASHES = {
    ("agft-15", 1): "8a71fe17befb2a9fb8110f9adac8ccf6c2cd55b60b23b0c564c398be7c13f318",
    ("bundled", 1): "c90561f5ae91b74a37714a9ed7b0c4af2f2bcaf3fa101833ec52192d67fc4ca7",
    ("cifar10", 1): "6c62d74002e54949d3e7706e3f654f0694c7b36d41214589b40d2423f4d53219",
    ("imagenet-shift", 1): "a7d748ebaa6464f02a4a3e8995cce2c45b4f2be79e1eebea46ce9afcccbaea0b",
    ("ironclip-16", 1): "c7477e568626ae251a43a94645c9be8a90547036b08b89b7c99f18112b233c29",
    ("natural", 1): "bf7919cdb96bf10ba68581966a4f4b957d0cbcd22804d788d91cb011524112ed",
    ("pmg-15", 1): "0271819d0f423e2f75d0cf4b3534643d1a5e22efea54bc74e4624cbc7fcac1ac",
    ("robustvlm-13", 1): "81137c02ed2745673c2922793970a2b222ae24140b16917b5fac0bd321589756",
    ("tga-16", 1): "275aa37145932bda593266d0cd9633382448da1b93eecfd664d8b888fd215569",
    ("ucat-16", 1): "fa1d09da59c11a4ece64a787d1dab42f5f662c5c7314e63293de0712b5b369b5",
}

# name: samples, names, chance
EXPECTED = {
    "cifar10": (10_000, 10),
    "tiny-imagenet": (9_000, 180),
    "caltech101": (3_170, 80),
    "tiny-imagenet-unseen": (1_000, 200),
    "tiny-imagenet-unseen-20way": (1_000, 20),
    "caltech101-unseen": (923, 100),
    "caltech101-unseen-20way": (923, 20),
}

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the development data (../shared/data) are not here")


@pytest.mark.parametrize("name", suite_names())
def test_a_suite_changes_only_with_its_version(name: str) -> None:
    suite = load_suite(name, "data")
    assert suite.sha256 == HASHES[suite.name, suite.version]
    assert suite.name == name


def test_data_sets_and_headlines() -> None:
    suite = load_suite("natural", "data")
    assert [entry.name for entry in suite.entries] == list(EXPECTED)
    assert [entry.name for entry in suite.entries if entry.headline] == ["cifar10", "tiny-imagenet", "caltech101"]
    for entry in suite.entries:
        assert (entry.spec.count, len(entry.class_names)) == EXPECTED[entry.name]
        assert entry.spec.metrics == ("top1", "mean_per_class")
        assert ("resize=32" in entry.source) == entry.name.startswith("caltech101")


def test_no_two_classes_share_a_prompt() -> None:
    for entry in load_suite("natural", "data").entries:
        assert colliding_names(entry.class_names) == []


def test_seen_and_unseen_classes_make_all() -> None:
    for name, count in (("tiny-imagenet", 200), ("caltech101", 100)):
        classes = yaml.safe_load((SUITES / "classes" / f"{name}.yaml").read_text(encoding="utf-8"))
        seen, unseen = classes["groups"]["seen"], classes["groups"]["unseen"]
        assert len(unseen) == 20
        assert sorted(seen + unseen) == list(range(count))
        assert classes["sha256"] == hashlib.sha256("\n".join(classes["names"]).encode()).hexdigest()


def test_unseen_training_images_are_read_by_nothing() -> None:
    for path in [*SUITES.rglob("*.*"), *(REPOSITORY / "recipes").rglob("*.*")]:
        if path.suffix in (".yaml", ".yml", ".py"):
            assert "train_unseen" not in path.read_text(encoding="utf-8"), path


@needs_data
@pytest.mark.parametrize("name", EXPECTED)
def test_opens(name: str) -> None:
    opened = load_suite("natural", DATA).entry(name).open(strict=True)
    count, names = EXPECTED[name]
    assert len(opened.dataset) == count
    assert len(opened.class_names) == names
    assert opened.dataset.labels is not None
    kept = 20 if "unseen" in name else names
    assert len(set(opened.dataset.labels)) == kept
    assert set(opened.dataset.labels) <= set(range(names))
    assert opened.chance == 1 / names
    for sample in (opened.dataset[0], limit(opened.dataset, 10)[9]):
        assert sample.pixels.shape == (3, 32, 32)
        assert sample.label is not None
        assert sample.key.split("/")[1] == "test"


@needs_data
def test_words_are_those_beside_the_data() -> None:
    unseen = json.loads((DATA / "unseen_classes.json").read_text(encoding="utf-8"))
    suite = load_suite("natural", DATA)
    for folder, name in (("cifar10", "cifar10"), ("tiny_imagenet", "tiny-imagenet"), ("caltech101", "caltech101")):
        words = (DATA / folder / "classes.txt").read_text(encoding="utf-8").splitlines()
        entry = suite.entry(name)
        hidden = {item["label"] for item in unseen.get(folder, ())}
        assert entry.class_names == tuple(word for label, word in enumerate(words) if label not in hidden)
        templates = json.loads((DATA / folder / "templates.json").read_text(encoding="utf-8"))
        assert list(entry.spec.templates) == templates
        if hidden:
            assert suite.entry(f"{name}-unseen").class_names == tuple(words)
            twenty = suite.entry(f"{name}-unseen-20way").class_names
            assert twenty == tuple(words[label] for label in sorted(hidden))


@needs_data
def test_a_sample_keeps_its_word_under_new_labels() -> None:
    suite = load_suite("natural", DATA)
    among_all = suite.entry("caltech101-unseen").open()
    twenty = suite.entry("caltech101-unseen-20way").open()
    assert among_all.dataset.keys == twenty.dataset.keys
    assert among_all.dataset.labels is not None
    assert twenty.dataset.labels is not None
    for wide, narrow in zip(among_all.dataset.labels, twenty.dataset.labels, strict=True):
        assert among_all.class_names[wide] == twenty.class_names[narrow]
