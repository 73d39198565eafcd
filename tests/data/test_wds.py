from __future__ import annotations

import gzip
import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from ironclip.data import open_dataset, wds
from ironclip.errors import ConfigError, DataError, UnreadableSampleError
from made_up_shards import encoded, labelled, levels, tar_bytes, write_shard


def pixels_of(number: int, side: int = 8) -> torch.Tensor:
    return torch.from_numpy(levels(number, side).transpose(2, 0, 1).astype(np.float32) / np.float32(255))


@pytest.fixture(params=["tar", "tar.gz", "tgz"])
def two_shards(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "birds"
    write_shard(folder / f"test-0001.{request.param}", labelled(5, 4))
    write_shard(folder / f"test-0000.{request.param}", labelled(0, 5))
    (folder / "classes.txt").write_text("wren\nrock dove\n", encoding="utf-8")
    (folder / "templates.json").write_text('["a photo of a {}."]', encoding="utf-8")
    return folder


def test_reads_plain_and_gzipped_shards_alike(two_shards: Path) -> None:
    dataset = open_dataset(f"wds:{two_shards}?split=test", strict=True)
    assert len(dataset) == 9
    assert dataset.keys == [f"birds/test/{number:06d}" for number in range(9)]
    assert dataset.labels == [number % 2 for number in range(9)]
    assert dataset.class_names == ["wren", "rock dove"]
    assert dataset.templates == ["a photo of a {}."]
    assert dataset.problems == ()
    for position in (7, 0, 3, 7):
        sample = dataset[position]
        assert (sample.key, sample.label, sample.captions) == (dataset.keys[position], position % 2, ())
        assert torch.equal(sample.pixels, pixels_of(position))


def test_a_data_set_travels_to_another_process(two_shards: Path) -> None:
    dataset = open_dataset(f"wds:{two_shards}?split=test")
    twin = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(twin[6].pixels, dataset[6].pixels)
    assert twin.fingerprint == dataset.fingerprint


def test_keys_and_fingerprint_do_not_depend_on_the_place(tmp_path: Path) -> None:
    opened = []
    for place in ("here", "there"):
        write_shard(tmp_path / place / "birds" / "test-0000.tar", labelled(0, 3))
        opened.append(open_dataset(f"wds:{tmp_path / place / 'birds'}?split=test"))
    assert opened[0].keys == opened[1].keys
    assert opened[0].fingerprint == opened[1].fingerprint


def test_fingerprint_is_the_hash_over_the_hashes_of_the_shards(two_shards: Path) -> None:
    dataset = open_dataset(f"wds:{two_shards}?split=test")
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(two_shards.glob("test-*"))]
    assert isinstance(dataset, wds.WdsDataset)
    assert [shard.sha256 for shard in dataset.shards] == hashes
    assert dataset.fingerprint == hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    assert open_dataset(f"wds:{two_shards}?split=test&resize=4").fingerprint != dataset.fingerprint


def test_big_plain_shards_are_known_by_their_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wds, "FULL_HASH_BYTES", 100)
    shard = write_shard(tmp_path / "birds" / "test-0000.tar", labelled(0, 3))
    before = open_dataset(f"wds:{shard.parent}")
    assert isinstance(before, wds.WdsDataset)
    assert before.shards[0].sha256 is None
    write_shard(shard, labelled(0, 3) | {"000001.cls": b"0"})
    assert open_dataset(f"wds:{shard.parent}").fingerprint != before.fingerprint
    write_shard(shard, labelled(0, 3))
    assert open_dataset(f"wds:{shard.parent}").fingerprint == before.fingerprint


def test_a_split_is_never_a_prefix_of_another(tmp_path: Path) -> None:
    folder = tmp_path / "birds"
    write_shard(folder / "train-0000.tar", labelled(0, 2))
    write_shard(folder / "train_unseen-0000.tar", labelled(10, 3))
    write_shard(folder / "train-unseen-0000.tar", labelled(20, 4))
    assert open_dataset(f"wds:{folder}?split=train").keys == ["birds/train/000000", "birds/train/000001"]
    assert len(open_dataset(f"wds:{folder}?split=train_unseen")) == 3
    assert len(open_dataset(f"wds:{folder}?split=train-unseen")) == 4
    with pytest.raises(ConfigError, match="several splits: train, train-unseen, train_unseen"):
        open_dataset(f"wds:{folder}/train*.tar")


def test_patterns_and_single_shards(tmp_path: Path) -> None:
    folder = tmp_path / "birds"
    for index in range(3):
        write_shard(folder / f"test-000{index}.tar", labelled(10 * index, 2))
    assert open_dataset(f"wds:{folder}/test-000[12].tar").keys[0] == "birds/test/000010"
    assert len(open_dataset(f"wds:{folder}/test-000?.tar?resize=4")) == 6
    assert len(open_dataset(f"wds:{folder}/test-0002.tar")) == 2
    with pytest.raises(ConfigError, match=r"split=test with a pattern(.|\n)*Give the folder"):
        open_dataset(f"wds:{folder}/test-*.tar?split=test")


def test_numbered_shards_without_a_name_are_one_split(tmp_path: Path) -> None:
    write_shard(tmp_path / "birds" / "0.tar", labelled(0, 2))
    write_shard(tmp_path / "birds" / "1.tar", labelled(2, 2))
    assert open_dataset(f"wds:{tmp_path / 'birds'}").keys[3] == "birds/all/000003"


def test_suffixes_folders_and_other_members(tmp_path: Path) -> None:
    members = {
        "./a/001.JPEG": encoded(1, 8, "JPEG"),
        "./a/001.cls": b" 3\n",
        "./a/._001.jpeg": b"a resource fork",
        "./a/001.seg.png": b"a mask",
        "b/001.webp": encoded(2, 8, "WEBP"),
        "b/001.cls": b"0",
        "README": b"no suffix",
    }
    write_shard(tmp_path / "birds" / "test-0.tar", members)
    dataset = open_dataset(f"wds:{tmp_path / 'birds'}", strict=True)
    assert dataset.keys == ["birds/test/a/001", "birds/test/b/001"]
    assert dataset.labels == [3, 0]
    assert dataset[1].pixels.shape == (3, 8, 8)


def test_captions_from_json_and_text(tmp_path: Path) -> None:
    members = {
        "0.png": encoded(0),
        "0.json": json.dumps({"file": "x.jpg", "captions": ["a wren", "a small bird"]}).encode(),
        "1.png": encoded(1),
        "1.txt": b"a dove\n\n on a roof \n",
        "2.png": encoded(2),
        "2.json": b'{"caption": "a nest"}',
        "3.png": encoded(3),
    }
    write_shard(tmp_path / "birds" / "test-0.tar.gz", members)
    dataset = open_dataset(f"wds:{tmp_path / 'birds'}", strict=True)
    assert dataset.labels is None
    assert dataset.class_names is None
    expected = [("a wren", "a small bird"), ("a dove", "on a roof"), ("a nest",), ()]
    assert [dataset[position].captions for position in range(4)] == expected
    assert dataset[0].label is None


def test_label_from_json(tmp_path: Path) -> None:
    write_shard(tmp_path / "birds" / "test-0.tar", {"0.png": encoded(0), "0.json": b'{"label": 7}'})
    assert open_dataset(f"wds:{tmp_path / 'birds'}", strict=True).labels == [7]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_damaged_image_is_named_and_the_rest_is_read(tmp_path: Path, suffix: str) -> None:
    members = labelled(0, 3)
    members["000001.png"] = members["000001.png"][:60]
    write_shard(tmp_path / "birds" / f"test-0.{suffix}", members)
    dataset = open_dataset(f"wds:{tmp_path / 'birds'}", strict=True)
    assert len(dataset) == 3
    with pytest.raises(UnreadableSampleError, match="birds/test/000001 cannot be read") as caught:
        dataset[1]
    assert caught.value.key == "birds/test/000001"
    assert caught.value.reason
    assert torch.equal(dataset[2].pixels, pixels_of(2))


def test_a_shard_that_goes_away_makes_unreadable_samples(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "birds" / "test-0.tar", labelled(0, 2))
    dataset = open_dataset(f"wds:{shard.parent}")
    shard.unlink()
    with pytest.raises(UnreadableSampleError, match="No such file"):
        dataset[0]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_samples_before_a_cut_are_kept_and_the_loss_is_recorded(tmp_path: Path, suffix: str) -> None:
    shard = write_shard(tmp_path / "birds" / f"test-0.{suffix}", labelled(0, 20, side=32))
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    dataset = open_dataset(f"wds:{shard.parent}")
    assert 5 <= len(dataset) <= 12
    assert dataset.keys == [f"birds/test/{number:06d}" for number in range(len(dataset))]
    for position in range(len(dataset)):
        assert torch.equal(dataset[position].pixels, pixels_of(position, 32))
    assert f"shard test-0.{suffix} is damaged" in dataset.problems[0]
    with pytest.raises(DataError, match=r"not whole: shard test-0(.|\n)*without --strict"):
        open_dataset(f"wds:{shard.parent}", strict=True)


def test_every_cut_of_a_plain_tar_is_noticed(tmp_path: Path) -> None:
    # tarfile takes a cut between two members, or inside a header, for the end of the archive.
    folder = tmp_path / "birds"
    members = {name: content[:100] for name, content in labelled(0, 3).items()}
    whole = tar_bytes(members)
    end = 6 * 1024  # six members of a header and one block each; what follows is zeros
    for cut in range(512, end, 256):
        folder.mkdir(exist_ok=True)
        (folder / "test-0.tar").write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"shard test-0\.tar is damaged"):
            open_dataset(f"wds:{folder}", strict=True)


def test_a_flipped_header_is_no_silent_end(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "birds" / "test-0.tar", labelled(0, 10))
    content = bytearray(shard.read_bytes())
    place = content.index(b"000006.png")
    content[place] ^= 1
    shard.write_bytes(content)
    dataset = open_dataset(f"wds:{shard.parent}")
    assert len(dataset) == 6
    assert "breaks off at byte" in dataset.problems[0]


def test_a_wrong_checksum_is_recorded(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "birds" / "test-0.tar.gz", labelled(0, 3))
    content = bytearray(shard.read_bytes())
    content[-6] ^= 1
    shard.write_bytes(content)
    dataset = open_dataset(f"wds:{shard.parent}")
    assert len(dataset) == 3
    assert "CRC" in dataset.problems[0]


def test_missing_parts_are_named_and_counted(tmp_path: Path) -> None:
    members = labelled(0, 10)
    del members["000002.cls"]
    del members["000003.png"]
    members["000004.cls"] = b"four"
    members["000005.jpg"] = encoded(5, 8, "JPEG")
    write_shard(tmp_path / "birds" / "test-0.tar", members)
    dataset = open_dataset(f"wds:{tmp_path / 'birds'}")
    assert [key[-1] for key in dataset.keys] == list("0156789")
    text = "\n".join(dataset.problems)
    assert "1 sample: no image; left out (birds/test/000003)." in text
    assert "2 samples: no label; left out (birds/test/000002, birds/test/000004)." in text
    assert "birds/test/000004: .cls holds b'four', expected a decimal number" in text
    assert "several images (jpg, png), of which the first is read (birds/test/000005)" in text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[1]", "holds no object"),
        (b"{", "Expecting property name"),
        (b'{"label": -1}', '"label" in .json is -1'),
        (b'{"label": true}', '"label" in .json is True'),
        (b'{"captions": 3}', "captions in .json are not texts"),
        (b'{"captions": [3]}', "captions in .json are not texts"),
        (b"\xff\xfe", "decode"),
    ],
)
def test_damaged_annotations_are_recorded(tmp_path: Path, content: bytes, reason: str) -> None:
    write_shard(tmp_path / "birds" / "test-0.tar", {"0.png": encoded(0), "0.json": content})
    dataset = open_dataset(f"wds:{tmp_path / 'birds'}")
    assert dataset[0].captions == ()
    assert "annotation that cannot be read" in dataset.problems[0]
    assert reason in dataset.problems[0]


def test_a_member_that_occurs_twice_is_recorded(tmp_path: Path) -> None:
    first, second = tar_bytes(labelled(0, 1)), tar_bytes({"000000.cls": b"1"})
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds" / "test-0.tar").write_bytes(first[: 4 * 512] + second)
    dataset = open_dataset(f"wds:{tmp_path / 'birds'}")
    assert dataset.labels == [0]
    assert "two members .cls in test-0.tar; the first is read (000000)" in dataset.problems[0]


def test_a_shard_that_is_missing_between_others_is_recorded(tmp_path: Path) -> None:
    for index in (0, 1, 4):
        write_shard(tmp_path / "birds" / f"test-{index:04d}.tar", labelled(10 * index, 2))
    missing = ("shard 2 of test is missing between the others.", "shard 3 of test is missing between the others.")
    assert open_dataset(f"wds:{tmp_path / 'birds'}?split=test").problems == missing
    assert open_dataset(f"wds:{tmp_path / 'birds'}/test-*[04].tar").problems == ()  # a choice, not a loss


def test_keys_shared_by_two_shards_are_refused(tmp_path: Path) -> None:
    for index in range(2):
        write_shard(tmp_path / "birds" / f"test-{index}.tar", labelled(0, 2))
    with pytest.raises(DataError, match=r"repeats 2 keys of earlier shards, such as 000000(.|\n)*keys run on"):
        open_dataset(f"wds:{tmp_path / 'birds'}")


def test_missing_folder_names_the_near_one(tmp_path: Path) -> None:
    write_shard(tmp_path / "cifar10" / "test-0.tar", labelled(0, 1))
    with pytest.raises(DataError, match=r'cifer10 does not exist. Did you mean "cifar10"(.|\n)*SPLIT-0000.tar'):
        open_dataset(f"wds:{tmp_path / 'cifer10'}?split=test")


def test_unknown_split_names_the_near_one(tmp_path: Path) -> None:
    write_shard(tmp_path / "birds" / "test-0.tar", labelled(0, 1))
    with pytest.raises(DataError, match=r'no split "tset" in .*Did you mean "test"(.|\n)*It has: test'):
        open_dataset(f"wds:{tmp_path / 'birds'}?split=tset")


def test_the_split_must_be_said_where_there_are_several(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_shard(tmp_path / "birds" / f"{split}-0.tar", labelled(0, 1))
    with pytest.raises(ConfigError, match=r"several splits: test, train(.|\n)*\?split=test"):
        open_dataset(f"wds:{tmp_path / 'birds'}")


def test_a_folder_without_shards(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing", encoding="utf-8")
    with pytest.raises(DataError, match=r"holds no tar shards(.|\n)*SPLIT-0000.tar"):
        open_dataset(f"wds:{tmp_path}")
    with pytest.raises(DataError, match="matches no tar shards"):
        open_dataset(f"wds:{tmp_path}/*.tar")


@pytest.mark.parametrize(
    "content", [b"", b"<!doctype html><html>not here</html>" * 30, gzip.compress(b"no tar" * 200, mtime=0)]
)
def test_what_is_no_tar_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "test-0.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"no readable sample. shard test-0.tar is damaged \(tar: "):
        open_dataset(f"wds:{tmp_path}")


def test_an_empty_tar_holds_no_sample(tmp_path: Path) -> None:
    write_shard(tmp_path / "test-0.tar", {})
    with pytest.raises(DataError, match="holds no readable sample"):
        open_dataset(f"wds:{tmp_path}")


@pytest.mark.parametrize(
    ("content", "words"), [("{", "is not JSON"), ('{"a": 1}', "not a list of texts"), ("[1]", "not a list of texts")]
)
def test_damaged_templates(tmp_path: Path, content: str, words: str) -> None:
    write_shard(tmp_path / "test-0.tar", labelled(0, 1))
    (tmp_path / "templates.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=words):
        open_dataset(f"wds:{tmp_path}")


def test_class_names_that_are_no_text(tmp_path: Path) -> None:
    write_shard(tmp_path / "test-0.tar", labelled(0, 1))
    (tmp_path / "classes.txt").write_bytes(b"wren\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"classes\.txt is not UTF-8"):
        open_dataset(f"wds:{tmp_path}")
