from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ironclip.data import open_dataset, torchvision_sets
from ironclip.data.images import open_image, to_pixels
from ironclip.errors import ConfigError, DataError, MissingDependencyError, UnreadableSampleError
from made_up_shards import encoded


def write_images(folder: Path, classes: dict[str, int]) -> None:
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / f"{number}.png").write_bytes(encoded(number))


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """MNIST's own file format, ten test images and twelve training images."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 12), ("t10k", 10)):
        levels = np.arange(count * 28 * 28, dtype=np.int64).astype(np.uint8)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + levels.tobytes())
        labels = (np.arange(count) * 3 % 10).astype(np.uint8)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())
    return tmp_path


def test_a_set_that_asks_train_or_test(digits: Path) -> None:
    dataset = open_dataset(f"torchvision:MNIST?root={digits}&split=test")
    assert len(dataset) == 10
    assert len(open_dataset(f"torchvision:MNIST?root={digits}&split=train")) == 12
    assert dataset.labels == [0, 3, 6, 9, 2, 5, 8, 1, 4, 7]
    assert dataset.keys[3] == "mnist/test/000003"
    assert dataset.class_names is not None
    assert dataset.class_names[3] == "3 - three"
    sample = dataset[3]
    assert sample.label == 9
    expected = (np.arange(3 * 784, 4 * 784) % 256).reshape(28, 28).astype(np.float32) / np.float32(255)
    assert torch.equal(sample.pixels, torch.from_numpy(expected).expand(3, 28, 28))
    with pytest.raises(ConfigError, match=r'no split "valid"(.|\n)*train, test'):
        open_dataset(f"torchvision:MNIST?root={digits}&split=valid")
    with pytest.raises(ConfigError, match=r"several splits(.|\n)*split=test"):
        open_dataset(f"torchvision:MNIST?root={digits}")


def test_a_set_that_names_its_splits(tmp_path: Path) -> None:
    write_images(tmp_path / "country211" / "valid", {"AD": 2, "ZW": 3})
    dataset = open_dataset(f"torchvision:Country211?root={tmp_path}&split=valid&resize=4")
    assert dataset.labels == [0, 0, 1, 1, 1]
    assert dataset.class_names == ["AD", "ZW"]
    assert dataset[4].pixels.shape == (3, 4, 4)
    with pytest.raises(DataError, match=r"(?s)Country211 cannot be opened: Unknown value 'tset'.*valid"):
        open_dataset(f"torchvision:Country211?root={tmp_path}&split=tset")


def test_a_set_without_splits(tmp_path: Path) -> None:
    write_images(tmp_path / "eurosat" / "2750", {"Forest": 2, "River": 1})
    dataset = open_dataset(f"torchvision:EuroSAT?root={tmp_path}")
    assert dataset.keys == ["eurosat/all/000000", "eurosat/all/000001", "eurosat/all/000002"]
    assert torch.equal(dataset[1].pixels, to_pixels(open_image(encoded(1))))
    with pytest.raises(ConfigError, match=r"has no splits \(got test\)"):
        open_dataset(f"torchvision:EuroSAT?root={tmp_path}&split=test")


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    write_images(tmp_path / "eurosat" / "2750", {"Forest": 2, "River": 1})
    (tmp_path / "eurosat" / "2750" / "Forest" / "1.png").write_bytes(b"damaged")
    dataset = open_dataset(f"torchvision:EuroSAT?root={tmp_path}")
    assert dataset.labels == [0, 0, 1]
    with pytest.raises(UnreadableSampleError, match="eurosat/all/000001 cannot be read: cannot identify"):
        dataset[1]


def test_fingerprint_follows_pixels_and_labels(tmp_path: Path) -> None:
    prints = set()
    for place, classes in (("a", {"Forest": 2, "River": 1}), ("b", {"Forest": 1, "River": 2})):
        write_images(tmp_path / place / "eurosat" / "2750", classes)
        prints.add(open_dataset(f"torchvision:EuroSAT?root={tmp_path / place}").fingerprint)
    assert len(prints) == 2
    (tmp_path / "b" / "eurosat" / "2750" / "River" / "1.png").write_bytes(encoded(77))
    prints.add(open_dataset(f"torchvision:EuroSAT?root={tmp_path / 'b'}").fingerprint)
    assert len(prints) == 3


def test_labels_that_the_set_keeps_are_checked_against_those_it_hands_out(digits: Path) -> None:
    from torchvision import datasets

    class MNIST(datasets.MNIST):
        def __getitem__(self, index: int) -> tuple[object, object]:
            image, label = super().__getitem__(index)
            return image, (label + 1) % 10

    inner = MNIST(str(digits), train=False)
    probed = {position: inner[position][1] for position in (1, 5)}
    assert torchvision_sets._labels("MNIST", inner, probed) == [1, 4, 7, 0, 3, 6, 9, 2, 5, 8]


def test_missing_files_are_not_fetched(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"CIFAR10 cannot be opened: (.|\n)*add &download=true"):
        open_dataset(f"torchvision:CIFAR10?root={tmp_path}&split=test")
    with pytest.raises(DataError, match="SEMEION cannot be opened"):  # downloads unless told not to
        open_dataset(f"torchvision:SEMEION?root={tmp_path}")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_downloaded_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot download FER2013(.|\n)*by hand"):
        open_dataset(f"torchvision:FER2013?root={tmp_path}&split=test&download=true")


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'no set "CIFAR11".* Did you mean "CIFAR10"'):
        open_dataset(f"torchvision:CIFAR11?root={tmp_path}")
    with pytest.raises(ConfigError, match="Write folder:PATH"):
        open_dataset(f"torchvision:ImageFolder?root={tmp_path}")
    with pytest.raises(ConfigError, match='no set "CocoCaptions" that can be read here'):
        open_dataset(f"torchvision:CocoCaptions?root={tmp_path}")
    with pytest.raises(ConfigError, match=r"torchvision.root: Field required"):
        open_dataset("torchvision:CIFAR10?split=test")


def test_sets_of_other_tasks_are_refused(tmp_path: Path) -> None:
    annotated = tmp_path / "Kitti" / "raw" / "training"
    for part in ("image_2", "label_2"):
        (annotated / part).mkdir(parents=True)
    (annotated / "image_2" / "000000.png").write_bytes(encoded(0))
    (annotated / "label_2" / "000000.txt").write_text("Car 0 0 0 1 1 2 2 1 1 1 0 0 0 0\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"labels of type list, expected whole numbers(.|\n)*Only classification"):
        open_dataset(f"torchvision:Kitti?root={tmp_path}&split=train")


def test_a_package_that_a_set_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setattr("torchvision.datasets.SVHN._check_integrity", lambda self: True)
    with pytest.raises(MissingDependencyError, match="torchvision:SVHN needs the package scipy"):
        open_dataset(f"torchvision:SVHN?root={tmp_path}&split=test")
