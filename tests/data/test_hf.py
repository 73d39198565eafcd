from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ironclip.data import open_dataset
from ironclip.errors import ConfigError, DataError, MissingDependencyError, UnreadableSampleError
from made_up_shards import encoded, levels

datasets = pytest.importorskip("datasets", reason="the extra ironclip[hf] is not installed")


@pytest.fixture(autouse=True)
def _no_progress_bars() -> None:
    datasets.disable_progress_bars()


def table(rows: dict[str, list[object]], **kinds: object) -> datasets.Dataset:
    return datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))


def cells(*numbers: int) -> list[object]:
    return [{"bytes": encoded(number), "path": None} for number in numbers]


IMAGE = datasets.Image()
PET = datasets.ClassLabel(names=["cat", "dog"])


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    kinds = {"photo": IMAGE, "species": PET, "note": datasets.Value("string")}
    train = table({"photo": cells(0, 1, 2), "species": [0, 1, 1], "note": ["x", "y", "z"]}, **kinds)
    test = table({"photo": cells(3, 4), "species": [1, 0], "note": ["x", "y"]}, **kinds)
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "pets")
    return tmp_path / "pets"


def test_reads_a_split(pets: Path) -> None:
    dataset = open_dataset(f"hf:{pets}?split=test", strict=True)
    assert dataset.keys == ["pets/test/000000", "pets/test/000001"]
    assert dataset.labels == [1, 0]
    assert dataset.class_names == ["cat", "dog"]
    expected = torch.from_numpy(levels(4).transpose(2, 0, 1).astype(np.float32) / np.float32(255))
    sample = dataset[1]
    assert sample.label == 0
    assert torch.equal(sample.pixels, expected)
    assert open_dataset(f"hf:{pets}?split=train&resize=4")[2].pixels.shape == (3, 4, 4)


def test_a_table_alone_with_named_columns(tmp_path: Path) -> None:
    kinds = {
        "left": IMAGE,
        "right": IMAGE,
        "fine": PET,
        "coarse": datasets.ClassLabel(names=["pet"]),
        "said": datasets.List(datasets.Value("string")),
    }
    rows = {"left": cells(0, 1), "right": cells(2, 3), "fine": [1, 0], "coarse": [0, 0], "said": [["a", "b"], []]}
    table(rows, **kinds).save_to_disk(tmp_path / "two")
    place = f"hf:{tmp_path / 'two'}"
    dataset = open_dataset(f"{place}?image=right&label=fine&captions=said")
    assert dataset.keys[0] == "two/all/000000"
    assert dataset[0].captions == ("a", "b")
    assert dataset[1].captions == ()
    assert torch.equal(dataset[0].pixels, torch.from_numpy(levels(2).transpose(2, 0, 1) / np.float32(255)))
    with pytest.raises(ConfigError, match=r"several columns that could be the image: left, right(.|\n)*\?image=left"):
        open_dataset(f"{place}?label=fine")
    with pytest.raises(ConfigError, match="several columns that could be the label: fine, coarse"):
        open_dataset(f"{place}?image=left")
    with pytest.raises(ConfigError, match=r'no column "lft" in .* Did you mean "left"'):
        open_dataset(f"{place}?image=lft")
    with pytest.raises(DataError, match=r"holds \['a', 'b'\], expected whole numbers"):
        open_dataset(f"{place}?image=left&label=said")
    with pytest.raises(DataError, match="holds 1, expected texts"):
        open_dataset(f"{place}?image=left&label=fine&captions=fine")


def test_whole_numbers_and_captions_by_their_usual_names(tmp_path: Path) -> None:
    kinds = {"image": IMAGE, "label": datasets.Value("int64"), "caption": datasets.Value("string")}
    rows = {"image": cells(0, 1), "label": [3, 4], "caption": ["one", None]}
    table(rows, **kinds).save_to_disk(tmp_path / "plain")
    dataset = open_dataset(f"hf:{tmp_path / 'plain'}")
    assert dataset.labels == [3, 4]
    assert dataset.class_names is None
    assert [dataset[row].captions for row in (0, 1)] == [("one",), ()]


def test_rows_without_labels_make_a_set_without_labels(tmp_path: Path) -> None:
    table({"image": cells(0, 1), "label": [-1, None]}, image=IMAGE, label=PET).save_to_disk(tmp_path / "hidden")
    dataset = open_dataset(f"hf:{tmp_path / 'hidden'}")
    assert dataset.labels is None
    assert dataset.class_names is None
    assert dataset[0].label is None


def test_damaged_and_lost_images_are_named(tmp_path: Path) -> None:
    rows = {"image": [{"bytes": b"damaged", "path": None}, None, *cells(0)]}
    table(rows, image=IMAGE).save_to_disk(tmp_path / "some")
    dataset = open_dataset(f"hf:{tmp_path / 'some'}")
    assert dataset[2].pixels.shape == (3, 8, 8)
    for row, words in ((0, "cannot identify"), (1, "the row holds no image")):
        with pytest.raises(UnreadableSampleError, match=f"some/all/00000{row} cannot be read: {words}"):
            dataset[row]


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    prints = []
    for place, number in (("a", 1), ("b", 1), ("c", 2)):
        table({"image": cells(0, number)}, image=IMAGE).save_to_disk(tmp_path / place)
        prints.append(open_dataset(f"hf:{tmp_path / place}").fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_errors(pets: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"several splits: train, test(.|\n)*\?split=train"):
        open_dataset(f"hf:{pets}")
    with pytest.raises(DataError, match=r'no split "tset" in .*Did you mean "test"(.|\n)*It has: train, test'):
        open_dataset(f"hf:{pets}?split=tset")
    with pytest.raises(DataError, match=r'pet does not exist. Did you mean "pets"(.|\n)*save_to_disk'):
        open_dataset(f"hf:{tmp_path / 'pet'}")
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match=r"other cannot be opened(.|\n)*for a folder of images write folder:PATH"):
        open_dataset(f"hf:{tmp_path / 'other'}")
    table({"text": ["a"]}, text=datasets.Value("string")).save_to_disk(tmp_path / "texts")
    with pytest.raises(ConfigError, match=r"has no column of images(.|\n)*\?image=NAME, of text"):
        open_dataset(f"hf:{tmp_path / 'texts'}")


def test_without_the_package(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match=r'hf: needs the package datasets(.|\n)*"ironclip\[hf\]"'):
        open_dataset(f"hf:{pets}?split=test")
