"""Images with a class for each pixel: the scenes of `shapes`, and folders of Pascal VOC and ADE20K as published.

Images and masks are cut to the centre square and brought to one side, images bicubic, masks by the nearest pixel.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ironclip.data.bundled import shapes
from ironclip.data.images import UNREADABLE, open_image, to_pixels
from ironclip.errors import DataError, UnreadableSampleError

UNLABELLED = 255
"""In a mask: nobody says what this pixel shows; it counts for nothing."""

VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "dining table",
    "dog",
    "horse",
    "motorbike",
    "person",
    "potted plant",
    "sheep",
    "sofa",
    "train",
    "tv monitor",
)
_ADE_CLASSES = 150


@dataclass(frozen=True)
class MaskedImage:
    """One image with its mask.

    Attributes:
        key: Stable name.
        pixels: Float32 `[3, H, W]` in [0, 1].
        mask: int64 `[H, W]`, indices into the class names, or `UNLABELLED`.
    """

    key: str
    pixels: Tensor
    mask: Tensor


@dataclass(frozen=True)
class MaskedSet:
    """Masked images by position, each made or read when it is asked for.

    Attributes:
        source: Where they come from.
        class_names: Words for the indices in masks.
        keys: One an image.
    """

    source: str
    class_names: tuple[str, ...]
    keys: tuple[str, ...]
    _read: Callable[[int], MaskedImage]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, position: int) -> MaskedImage:
        """Return an image.

        Raises:
            UnreadableSampleError: Image or mask cannot be decoded, or do not fit together.
        """
        return self._read(position)


def shapes_masks(split: str = "scenes_test") -> MaskedSet:
    """Return a split of `shapes`: its pairs of colour and shape, and the ground as the last class.

    Raises:
        ConfigError: There is no such split.
    """
    shapes.scene(split, 0)  # refuses an unknown split
    names = (*shapes.CLASS_NAMES, "plain background")

    def read(position: int) -> MaskedImage:
        scene = shapes.scene(split, position)
        mask = torch.full((32, 32), len(names) - 1)
        for item in scene.objects:
            mask[torch.from_numpy(item.mask)] = names.index(item.name)
        pixels = torch.from_numpy(scene.pixels.copy()).permute(2, 0, 1).float() / 255
        return MaskedImage(scene.key, pixels, mask)

    count = shapes.SPLITS[split].count
    keys = tuple(shapes.key_of(split, index) for index in range(count))
    return MaskedSet(f"bundled:shapes?split={split}", names, keys, read)


def voc_masks(folder: str | Path, *, split: str = "val", side: int) -> MaskedSet:
    """Open a folder VOC2012: JPEGImages, SegmentationClass, ImageSets/Segmentation/SPLIT.txt.

    Args:
        folder: The folder.
        split: "train", "val" or "trainval".
        side: Of the square that images and masks are brought to, in pixels.

    Raises:
        DataError: A part of it is not there.
    """
    root = Path(folder)
    listed = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not listed.is_file():
        raise DataError(f"{root} has no {listed.relative_to(root)}.", "Give the folder VOC2012, and a split of it.")
    names = listed.read_text().split()
    files = [(root / "JPEGImages" / f"{name}.jpg", root / "SegmentationClass" / f"{name}.png") for name in names]
    keys = tuple(f"voc/{split}/{name}" for name in names)
    return _pairs(f"voc:{root}?split={split}", VOC_CLASSES, keys, files, side, lambda mask: mask)


def ade20k_masks(folder: str | Path, *, split: str = "validation", side: int) -> MaskedSet:
    """Open a folder ADEChallengeData2016 (150 classes): images, annotations, objectInfo150.txt.

    Args:
        folder: The folder.
        split: "training" or "validation".
        side: Of the square that images and masks are brought to, in pixels.

    Raises:
        DataError: A part of it is not there.
    """
    root = Path(folder)
    info, images = root / "objectInfo150.txt", root / "images" / split
    if not info.is_file() or not images.is_dir():
        missing = info if not info.is_file() else images
        raise DataError(f"{root} has no {missing.relative_to(root)}.", "Give the folder ADEChallengeData2016.")
    # Tab-separated, a head line, the names last; several words for one class stand beside each other.
    lines = info.read_text().splitlines()[1:]
    names = tuple(re.split(r"[,;]", line.rstrip().split("\t")[-1])[0].strip() for line in lines if line.strip())
    if len(names) != _ADE_CLASSES:
        raise DataError(f"{info} names {len(names)} classes, expected {_ADE_CLASSES}.", "Fetch the file anew.")
    found = sorted(images.glob("*.jpg"))
    if not found:
        raise DataError(f"{images} holds no image.", "Fetch the data anew.")
    files = [(path, root / "annotations" / split / f"{path.stem}.png") for path in found]
    keys = tuple(f"ade20k/{split}/{path.stem}" for path in found)
    # 0 is "none of these", and classes count from 1.
    return _pairs(
        f"ade20k:{root}?split={split}",
        names,
        keys,
        files,
        side,
        lambda mask: torch.where(mask > 0, mask - 1, UNLABELLED),
    )


def _pairs(
    source: str,
    names: tuple[str, ...],
    keys: tuple[str, ...],
    files: Sequence[tuple[Path, Path]],
    side: int,
    relabel: Callable[[Tensor], Tensor],
) -> MaskedSet:
    def read(position: int) -> MaskedImage:
        (image_file, mask_file), key = files[position], keys[position]
        try:
            image = open_image(image_file.read_bytes()).convert("RGB")
            with Image.open(mask_file, formats=["PNG"]) as opened:
                mask = opened.copy()
        except UNREADABLE as error:
            raise UnreadableSampleError(key, str(error)) from None
        if mask.mode not in ("P", "L") or mask.size != image.size:
            raise UnreadableSampleError(
                key, f"the mask is {mask.size[0]}x{mask.size[1]} {mask.mode}, the image {image.size[0]}x{image.size[1]}"
            )
        pixels = to_pixels(_square(image, side, Image.Resampling.BICUBIC))
        indices = np.asarray(_square(mask, side, Image.Resampling.NEAREST), dtype=np.int64)
        labels = relabel(torch.from_numpy(indices.copy()))
        if strange := sorted({*labels.unique().tolist()} - {*range(len(names)), UNLABELLED}):
            raise UnreadableSampleError(key, f"the mask holds {strange[0]}, which is no class")
        return MaskedImage(key, pixels, labels)

    return MaskedSet(source, names, keys, read)


def _square(image: Image.Image, side: int, kernel: Image.Resampling) -> Image.Image:
    """Cut out the centre square and scale it."""
    width, height = image.size
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    return image.crop((left, top, left + short, top + short)).resize((side, side), kernel)
