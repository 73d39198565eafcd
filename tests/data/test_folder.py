from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ironclip.data import fingerprints, open_dataset
from ironclip.data.images import open_image, to_pixels
from ironclip.errors import DataError, UnreadableSampleError
from made_up_shards import encoded


def write(path: Path, number: int, form: str = "PNG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(number, 8, form))


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    folder = tmp_path / "pets"
    write(folder / "dog" / "2.png", 2)
    write(folder / "dog" / "more" / "1.JPG", 1, "JPEG")
    write(folder / "cat" / "b.png", 4)
    write(folder / "cat" / "a.webp", 3, "WEBP")
    (folder / "cat" / "notes.txt").write_text("no image", encoding="utf-8")
    return folder


def test_one_folder_a_class(pets: Path) -> None:
    dataset = open_dataset(f"folder:{pets}", strict=True)
    assert dataset.keys == ["pets/cat/a.webp", "pets/cat/b.png", "pets/dog/2.png", "pets/dog/more/1.JPG"]
    assert dataset.labels == [0, 0, 1, 1]
    assert dataset.class_names == ["cat", "dog"]
    assert dataset.templates is None
    assert [dataset[position].label for position in range(4)] == [0, 0, 1, 1]
    assert torch.equal(dataset[2].pixels, to_pixels(open_image(encoded(2))))


def test_agrees_with_image_folder_of_torchvision(pets: Path) -> None:
    from torchvision.datasets import ImageFolder

    dataset, reference = open_dataset(f"folder:{pets}"), ImageFolder(str(pets))
    expected = {f"pets/{Path(path).relative_to(pets).as_posix()}": label for path, label in reference.samples}
    assert dataset.labels is not None
    assert dict(zip(dataset.keys, dataset.labels, strict=True)) == expected
    assert dataset.class_names == reference.classes


def test_a_split_is_a_folder_inside(pets: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    pets.rename(tmp_path / "set" / "test")
    dataset = open_dataset(f"folder:{tmp_path / 'set'}?split=test&size=4")
    assert dataset.keys[0] == "set/test/cat/a.webp"
    assert dataset[0].pixels.shape == (3, 4, 4)
    with pytest.raises(DataError, match=r"look like splits, not classes: test(.|\n)*\?split=test"):
        open_dataset(f"folder:{tmp_path / 'set'}")
    with pytest.raises(DataError, match=r'tset does not exist. Did you mean "test"'):
        open_dataset(f"folder:{tmp_path / 'set'}?split=tset")


def test_images_without_labels(tmp_path: Path) -> None:
    write(tmp_path / "flat" / "b.png", 1)
    write(tmp_path / "flat" / "a.png", 2)
    write(tmp_path / "flat" / ".hidden.png", 3)
    (tmp_path / "flat" / "empty").mkdir()
    dataset = open_dataset(f"folder:{tmp_path / 'flat'}", strict=True)
    assert dataset.keys == ["flat/a.png", "flat/b.png"]
    assert dataset.labels is None
    assert dataset.class_names is None
    assert dataset[1].label is None


def test_names_beside_the_folders(pets: Path) -> None:
    (pets / "classes.txt").write_text("tabby cat\ngood dog\n", encoding="utf-8")
    (pets / "templates.json").write_text('["a {}"]', encoding="utf-8")
    dataset = open_dataset(f"folder:{pets}")
    assert dataset.class_names == ["tabby cat", "good dog"]
    assert dataset.templates == ["a {}"]


def test_hidden_folders_are_passed_over(pets: Path) -> None:
    write(pets / ".checkpoints" / "1.png", 1)
    write(pets / "dog" / ".thumbs" / "1.png", 1)
    assert len(open_dataset(f"folder:{pets}")) == 4


def test_an_empty_class_keeps_its_label_and_is_recorded(pets: Path) -> None:
    (pets / "cow").mkdir()
    dataset = open_dataset(f"folder:{pets}")
    assert dataset.class_names == ["cat", "cow", "dog"]
    assert dataset.labels == [0, 0, 2, 2]
    assert dataset.problems == ("the class folder cow holds no image.",)
    with pytest.raises(DataError, match="class folder cow"):
        open_dataset(f"folder:{pets}", strict=True)


def test_damaged_and_lost_images_are_named(pets: Path) -> None:
    (pets / "cat" / "a.webp").write_bytes(b"<html>")
    (pets / "dog" / "0.png").symlink_to(pets / "nowhere.png")
    dataset = open_dataset(f"folder:{pets}")
    assert len(dataset) == 5
    with pytest.raises(UnreadableSampleError, match=r"pets/cat/a.webp cannot be read: cannot identify"):
        dataset[0]
    with pytest.raises(UnreadableSampleError, match=r"pets/dog/0.png cannot be read: .*No such file"):
        dataset[2]


def test_images_beside_class_folders_are_refused(pets: Path) -> None:
    write(pets / "stray.png", 9)
    with pytest.raises(DataError, match=r"holds 1 images beside class folders(.|\n)*Move them"):
        open_dataset(f"folder:{pets}")


def test_no_folder_and_no_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist(.|\n)*one folder of images a class"):
        open_dataset(f"folder:{tmp_path / 'nowhere'}")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="file is not a folder"):
        open_dataset(f"folder:{tmp_path / 'file'}")
    with pytest.raises(DataError, match="holds no readable sample"):
        open_dataset(f"folder:{tmp_path}")


def test_fingerprint_follows_contents_and_for_big_folders_sizes(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = open_dataset(f"folder:{pets}").fingerprint
    content = bytearray((pets / "dog" / "2.png").read_bytes())
    content[-1] ^= 1
    (pets / "dog" / "2.png").write_bytes(content)
    assert open_dataset(f"folder:{pets}").fingerprint != whole

    monkeypatch.setattr(fingerprints, "FULL_HASH_BYTES", 10)
    sizes = open_dataset(f"folder:{pets}").fingerprint
    content[-1] ^= 1
    (pets / "dog" / "2.png").write_bytes(content)
    assert open_dataset(f"folder:{pets}").fingerprint == sizes
    (pets / "dog" / "2.png").write_bytes(content + b"0")
    assert open_dataset(f"folder:{pets}").fingerprint != sizes
