"""The suite `bundled` as it is shipped, and fingerprints in suites."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ironclip.cli import main
from ironclip.data import open_dataset
from ironclip.data.bundled import digits, shapes
from ironclip.data.classes import colliding_names
from ironclip.data.order import limit
from ironclip.errors import ConfigError, DataError
from ironclip.suites import Suite, load_suite
from made_up_shards import encoded

# name: samples, classes among them, names
EXPECTED = {"digits": (500, 10, 10), "shapes": (2000, 48, 64), "shapes-heldout": (2000, 16, 64)}


@pytest.fixture
def bundled(tmp_path: Path) -> Suite:
    return load_suite("bundled", tmp_path / "no such folder")


@pytest.mark.parametrize("name", EXPECTED)
def test_opens_without_a_data_root(bundled: Suite, name: str) -> None:
    count, kept, names = EXPECTED[name]
    opened = bundled.entry(name).open(strict=True)
    assert len(opened.dataset) == bundled.entry(name).spec.count == count
    assert opened.dataset.labels is not None
    assert len(set(opened.dataset.labels)) == kept
    assert opened.chance == 1 / names
    assert opened.dataset.fingerprint == bundled.entry(name).spec.fingerprint
    assert opened.metrics == ("top1", "mean_per_class")
    for sample in (opened.dataset[0], limit(opened.dataset, 10)[9]):
        assert sample.pixels.shape == (3, 32, 32)
        assert sample.key.split("/")[1] in ("test", "heldout")


def test_data_sets(bundled: Suite) -> None:
    assert [entry.name for entry in bundled.entries] == list(EXPECTED)
    assert all("{data}" not in entry.source for entry in bundled.entries)


def test_words_are_those_of_the_data(bundled: Suite) -> None:
    for name, module in (("digits", digits), ("shapes", shapes), ("shapes-heldout", shapes)):
        entry = bundled.entry(name)
        assert entry.class_names == tuple(module.CLASS_NAMES)
        assert entry.spec.templates == tuple(module.TEMPLATES)
        assert colliding_names(entry.class_names) == []


def test_seen_and_held_out_combinations_make_all(bundled: Suite) -> None:
    seen, heldout = (set(bundled.entry(name).open().dataset.labels or ()) for name in ("shapes", "shapes-heldout"))
    assert not seen & heldout
    assert seen | heldout == set(range(64))
    assert seen == set(open_dataset("bundled:shapes?split=train").labels or ())


def test_the_command_line_needs_no_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IRONCLIP_DATA_ROOT", raising=False)
    (tmp_path / "my_model.py").write_text("def first_pixels():\n    return lambda pixels: pixels.flatten(1)[:, :10]\n")
    words = ["eval", "python:my_model:first_pixels", "--suite", "bundled", "--dataset", "digits", "--limit", "16"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--attack", "fgsm", "--eps", "1/255", "--out", "run"])
    assert not ended.value.code
    (rows,) = (tmp_path / "run" / "rows").glob("*digits*")
    assert rows.stat().st_size


@pytest.fixture
def written(tmp_path: Path) -> dict[str, Any]:
    """A suite over a folder of images."""
    for name in ("dove", "wren"):
        (tmp_path / "birds" / name).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "birds" / name / f"{number}.png").write_bytes(encoded(number + len(name)))
    classes = {
        "source": "made up",
        "count": 2,
        "names": ["dove", "wren"],
        "sha256": hashlib.sha256(b"dove\nwren").hexdigest(),
    }
    (tmp_path / "names.yaml").write_text(yaml.safe_dump(classes), encoding="utf-8")
    entry = {"name": "birds", "title": "Birds", "source": "folder:{data}/birds", "classes": "names.yaml"}
    return {"name": "mine", "version": 1, "title": "Mine", "data": [entry | {"templates": ["a {}."]}]}


@pytest.fixture
def load(written: dict[str, Any], tmp_path: Path) -> Callable[..., Suite]:
    def load(**change: object) -> Suite:
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(written | {"data": [written["data"][0] | change]}), encoding="utf-8")
        return load_suite(path, tmp_path)

    return load


def test_a_fingerprint_holds_any_source_fast(load: Callable[..., Suite], tmp_path: Path) -> None:
    found = load().entry("birds").open().dataset.fingerprint
    suite = load(fingerprint=found)
    assert suite.entry("birds").open().dataset.fingerprint == found
    assert suite.sha256 != load().sha256 != load(fingerprint="0" * 64).sha256
    (tmp_path / "birds" / "wren" / "1.png").write_bytes(encoded(77))
    words = rf"has the fingerprint (?!{found})\w{{64}}, expected {found}(.|\n)*new fingerprint. .* under {tmp_path}"
    with pytest.raises(DataError, match=r'suite "mine", data set "birds": .*' + words):
        suite.entry("birds").open()


def test_other_content_of_a_bundled_set_is_refused(load: Callable[..., Suite]) -> None:
    suite = load(source="bundled:digits?split=test&resize=16", classes="digits", fingerprint="0" * 64)
    with pytest.raises(DataError, match=r"split=test&resize=16 has the fingerprint \w{64}, expected 0{64}") as caught:
        suite.entry("birds").open()
    assert "looks for its data under" not in str(caught.value)


def test_hashes_of_shards_are_for_shards(load: Callable[..., Suite]) -> None:
    with pytest.raises(ConfigError, match=r"sha256 with bundled:digits(.|\n)*write fingerprint instead"):
        load(source="bundled:digits?split=test", sha256={"digits": "0" * 64})
