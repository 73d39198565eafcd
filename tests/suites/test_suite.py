from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from ironclip.errors import ConfigError, DataError, RegistryError
from ironclip.suites import Suite, load_suite
from made_up_shards import labelled, write_shard


def class_list(*names: str, **groups: list[int]) -> dict[str, Any]:
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    return {"source": "made up", "count": len(names), "sha256": digest, "names": list(names), "groups": groups}


@pytest.fixture
def written(tmp_path: Path) -> dict[str, Any]:
    """A suite of one data set of ten images in three classes, as a user would write it."""
    shard = write_shard(tmp_path / "data" / "birds" / "test-0.tar", labelled(0, 10, classes=3))
    names = class_list("wren", "dove", "owl", rare=[2, 0])
    (tmp_path / "names.yaml").write_text(yaml.safe_dump(names), encoding="utf-8")
    return {
        "name": "mine",
        "version": 1,
        "title": "My birds",
        "data": [
            {
                "name": "birds",
                "title": "Birds",
                "source": "wds:{data}/birds?split=test",
                "classes": "names.yaml",
                "templates": ["a photo of a {}."],
                "count": 10,
                "sha256": {"test-0.tar": hashlib.sha256(shard.read_bytes()).hexdigest()},
            }
        ],
    }


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def load(written: dict[str, Any], *, root: str = "data") -> Suite:
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(written), encoding="utf-8")
        return load_suite(path, tmp_path / root)

    return load


def test_a_suite_of_ones_own(written: dict[str, Any], load: Any) -> None:
    suite = load(written)
    assert (suite.name, suite.version, suite.title) == ("mine", 1, "My birds")
    birds = suite.entry("birds").open(strict=True)
    assert (birds.name, birds.title, len(birds.dataset)) == ("birds", "Birds", 10)
    assert birds.class_names == ("wren", "dove", "owl")
    assert birds.templates == ("a photo of a {}.",)
    assert birds.metrics == ("top1",)
    assert birds.headline is False
    assert birds.chance == pytest.approx(1 / 3)
    assert birds.dataset.class_names == birds.class_names
    assert [birds.dataset[position].label for position in range(4)] == [0, 1, 2, 0]


def test_some_classes_against_all_names(written: dict[str, Any], load: Any) -> None:
    written["data"][0] |= {"keep_labels": "rare", "count": 7}
    birds = load(written).entry("birds").open()
    assert birds.class_names == ("wren", "dove", "owl")
    assert birds.dataset.labels == [0, 2, 0, 2, 0, 2, 0]


def test_some_classes_against_their_own_names(written: dict[str, Any], load: Any) -> None:
    written["data"][0] |= {"keep_labels": "rare", "names": "kept", "count": 7}
    birds = load(written).entry("birds").open()
    assert birds.class_names == ("owl", "wren")
    assert birds.dataset.class_names == ("owl", "wren")
    assert birds.dataset.labels == [1, 0, 1, 0, 1, 0, 1]
    assert birds.chance == 0.5


def test_the_hash_covers_what_decides_a_score(written: dict[str, Any], load: Any, tmp_path: Path) -> None:
    before = load(written).sha256
    assert load(written, root="elsewhere").sha256 == before
    entry = written["data"][0]
    for prose in ({"title": "Vögel"}, {"note": "small"}, {"coding": "lossless"}):
        assert load(written | {"title": "T", "data": [entry | prose]}).sha256 == before
    changed = [
        written | {"version": 2},
        written | {"name": "other"},
        written | {"data": [entry | {"source": "wds:{data}/birds?split=test&resize=4"}]},
        written | {"data": [entry | {"templates": ["a {}"]}]},
        written | {"data": [entry | {"metrics": ["mean_per_class"]}]},
        written | {"data": [entry | {"keep_labels": "rare"}]},
        written | {"data": [entry | {"keep_labels": "rare", "names": "kept"}]},
        written | {"data": [entry | {"count": 9}]},
        written | {"data": [entry | {"sha256": {}}]},
        written | {"data": [entry, entry | {"name": "again"}]},
    ]
    hashes = {load(other).sha256 for other in changed} | {before}
    assert len(hashes) == len(changed) + 1
    names = class_list("wren", "pigeon", "owl", rare=[2, 0])
    (tmp_path / "names.yaml").write_text(yaml.safe_dump(names), encoding="utf-8")
    assert load(written).sha256 not in hashes


def test_missing_data_are_said_in_one_error(written: dict[str, Any], load: Any) -> None:
    with pytest.raises(DataError, match=r'suite "mine", data set "birds": the folder .*elsewhere') as caught:
        load(written, root="elsewhere").entry("birds").open()
    assert "looks for its data under" in str(caught.value)
    assert str(caught.value).count("\n") == 1


def test_other_bytes_are_refused(written: dict[str, Any], load: Any, tmp_path: Path) -> None:
    write_shard(tmp_path / "data" / "birds" / "test-0.tar", labelled(1, 10, classes=3))
    with pytest.raises(DataError, match=r"shard test-0.tar: sha256 \w{64}, expected \w{64}(.|\n)*fetch the data again"):
        load(written).entry("birds").open()


def test_a_shard_too_many_and_one_too_few(written: dict[str, Any], load: Any, tmp_path: Path) -> None:
    write_shard(tmp_path / "data" / "birds" / "test-1.tar", labelled(20, 1))
    with pytest.raises(DataError, match=r"shard test-1.tar: sha256 .*, expected no such shard"):
        load(written).entry("birds").open()
    (tmp_path / "data" / "birds" / "test-0.tar").unlink()
    with pytest.raises(DataError, match=r"shard test-0.tar: sha256 none, it is missing, expected"):
        load(written).entry("birds").open()


def test_another_count_is_refused(written: dict[str, Any], load: Any) -> None:
    written["data"][0] |= {"count": 11}
    with pytest.raises(DataError, match="10 samples, expected 11"):
        load(written).entry("birds").open()


def test_losses_are_on_record_and_fatal_only_when_strict(written: dict[str, Any], load: Any, tmp_path: Path) -> None:
    shard = tmp_path / "data" / "birds" / "test-0.tar"
    shard.write_bytes(shard.read_bytes()[:5000])
    del written["data"][0]["sha256"]
    birds = load(written).entry("birds").open()
    assert len(birds.dataset) < 10
    assert "test-0.tar is damaged" in birds.dataset.problems[0]
    with pytest.raises(DataError, match=r'data set "birds": .* is not whole'):
        load(written).entry("birds").open(strict=True)


def test_class_names_that_do_not_fit(written: dict[str, Any], load: Any, tmp_path: Path) -> None:
    (tmp_path / "names.yaml").write_text(yaml.safe_dump(class_list("wren", "dove")), encoding="utf-8")
    with pytest.raises(DataError, match='suite "mine", data set "birds": 2 class names for 3 labels'):
        load(written).entry("birds").open()


def test_data_without_labels_or_without_the_kept_ones(written: dict[str, Any], load: Any, tmp_path: Path) -> None:
    written["data"][0] |= {"sha256": {}, "count": None}
    only = {name: content for name, content in labelled(0, 4).items() if name.endswith(".png")}
    write_shard(tmp_path / "data" / "birds" / "test-0.tar", only)
    with pytest.raises(DataError, match="has no labels"):
        load(written).entry("birds").open()
    write_shard(tmp_path / "data" / "birds" / "test-0.tar", labelled(0, 4, classes=2))
    written["data"][0] |= {"keep_labels": "rare"}
    with pytest.raises(DataError, match="has no sample of label 2"):
        load(written).entry("birds").open()


def test_unknown_names(written: dict[str, Any], load: Any, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r'unknown suite "natral". Did you mean "natural"(.|\n)*path of a .yaml'):
        load_suite("natral", tmp_path)
    with pytest.raises(ConfigError, match=r"no suite file .*nowhere.yaml"):
        load_suite(tmp_path / "nowhere.yaml", tmp_path)
    with pytest.raises(RegistryError, match=r'has no data set "brids". Did you mean "birds"'):
        load(written).entry("brids")
    for value, words in (
        ({"classes": "cifar11"}, 'unknown class list "cifar11". Did you mean "cifar10"'),
        ({"classes": "nowhere.yaml"}, "no class list file .*nowhere.yaml"),
        ({"keep_labels": "rear"}, 'no group of labels "rear" in the class list names.yaml. Did you mean "rare"'),
    ):
        with pytest.raises(ConfigError, match=words):
            load(written | {"data": [written["data"][0] | value]})


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"templats": []}, r'mine.yaml.data\[0\]: unknown key "templats". Did you mean "templates"'),
        ({"names": "kept"}, "birds: names: kept without keep_labels"),
        ({"names": "some"}, r"mine.yaml.data\[0\].names: .*'all' or 'kept'"),
        ({"metrics": ["top5"]}, r"data\[0\].metrics.0: .*'top1' or 'mean_per_class'"),
        ({"metrics": []}, r"data\[0\].metrics: .*at least 1"),
        ({"templates": ["a photo"]}, r"has no \{\}"),
        ({"templates": []}, "no prompt template"),
        ({"source": "folder:{data}/birds"}, "sha256 with folder:"),
        ({"count": 0}, r"data\[0\].count: .*greater than 0"),
    ],
)
def test_wrong_entries(written: dict[str, Any], load: Any, value: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(written | {"data": [written["data"][0] | value]})


def test_all_problems_are_said_at_once(written: dict[str, Any], load: Any) -> None:
    entry = written["data"][0]
    written["data"] = [entry | {"templates": ["a photo"]}, entry | {"clases": "x"}, entry, entry]
    with pytest.raises(ConfigError, match=r'(?s)has no \{\}.*unknown key "clases".*two data sets are called "birds"'):
        load(written)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("version", "one", "mine.yaml.version"),
        ("data", [], "at least 1"),
        ("datta", [], 'unknown key "datta"'),
        ("data", ["cifar10"], r"mine.yaml.data.0"),
    ],
)
def test_wrong_suites(written: dict[str, Any], load: Any, key: str, value: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(written | {key: value})


@pytest.mark.parametrize(
    ("content", "words"), [("a: [", "is not YAML"), ("- a", "holds no keys"), ("", "holds no keys")]
)
def test_what_is_no_suite(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "mine.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        load_suite(tmp_path / "mine.yaml", tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"count": 4}, "3 names, count says 4"),
        ({"names": ["wren", "dove", "eagle"]}, r"the names have sha256 \w{64}, sha256 says \w{64}"),
        ({"groups": {"rare": [3]}}, "the group rare has labels that are given twice or have no name"),
        ({"groups": {"rare": [1, 1]}}, "the group rare has labels that are given twice or have no name"),
        ({"names": ["wren", False, "owl"]}, "names.yaml.names.1: Input should be a valid string"),
    ],
)
def test_class_lists_that_contradict_themselves(
    written: dict[str, Any], load: Any, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    wrong = class_list("wren", "dove", "owl", rare=[2, 0]) | change
    (tmp_path / "names.yaml").write_text(yaml.safe_dump(wrong), encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        load(written)
