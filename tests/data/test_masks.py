from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ironclip.data.bundled import shapes
from ironclip.data.masks import UNLABELLED, VOC_CLASSES, ade20k_masks, shapes_masks, voc_masks
from ironclip.errors import ConfigError, DataError, UnreadableSampleError
from made_up_images import natural_like, to_pil


def test_a_mask_of_shapes_is_what_was_painted():
    data = shapes_masks("scenes_test")
    assert len(data) == 2000
    assert len(data.class_names) == 65
    for position in range(5):
        image, scene = data[position], shapes.scene("scenes_test", position)
        assert image.key == data.keys[position] == scene.key
        for item in scene.objects:
            assert (image.mask[torch.from_numpy(item.mask)] == data.class_names.index(item.name)).all()
        painted = sum(item.mask.sum() for item in scene.objects)
        assert (image.mask == 64).sum() == 32 * 32 - painted
        assert torch.equal((image.pixels * 255).round().byte().permute(1, 2, 0), torch.from_numpy(scene.pixels.copy()))
    with pytest.raises(ConfigError, match='no split "scenes" in shapes'):
        shapes_masks("scenes")


def palette(indices):
    image = Image.fromarray(np.asarray(indices, dtype=np.uint8), mode="P")
    image.putpalette([value for colour in range(256) for value in (colour, 255 - colour, 7)])
    return image


@pytest.fixture
def voc(tmp_path):
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("2007_1\n2007_2\n")
    for number in (1, 2):
        to_pil(natural_like(1, 20, 40, seed=number)[0]).save(tmp_path / f"JPEGImages/2007_{number}.jpg")
        indices = np.zeros((20, 40))
        indices[:, :10] = 3  # outside the centre square
        indices[:10, 10:30] = 12
        indices[10:, 20:30] = 255
        palette(indices).save(tmp_path / f"SegmentationClass/2007_{number}.png")
    return tmp_path


def test_voc_is_cut_to_the_centre_and_keeps_indices(voc):
    data = voc_masks(voc, side=8)
    assert data.keys == ("voc/val/2007_1", "voc/val/2007_2")
    assert (len(VOC_CLASSES), VOC_CLASSES[15]) == (21, "person")
    image = data[1]
    assert image.pixels.shape == (3, 8, 8)
    assert image.pixels.dtype == torch.float32
    assert image.mask.tolist() == [[12] * 8] * 4 + [[0] * 4 + [UNLABELLED] * 4] * 4


def test_what_is_missing_in_voc_is_named(voc):
    with pytest.raises(DataError, match=r"has no ImageSets/Segmentation/test\.txt\.\n.*VOC2012"):
        voc_masks(voc, split="test", side=8)
    palette(np.full((20, 40), 77)).save(voc / "SegmentationClass/2007_1.png")
    with pytest.raises(UnreadableSampleError, match="the mask holds 77, which is no class"):
        voc_masks(voc, side=8)[0]
    palette(np.zeros((8, 8))).save(voc / "SegmentationClass/2007_1.png")
    with pytest.raises(UnreadableSampleError, match="the mask is 8x8 P, the image 40x20"):
        voc_masks(voc, side=8)[0]
    (voc / "JPEGImages/2007_2.jpg").write_bytes(b"no image")
    with pytest.raises(UnreadableSampleError, match="voc/val/2007_2 cannot be read"):
        voc_masks(voc, side=8)[1]


@pytest.fixture
def ade(tmp_path):
    for name in ("images/validation", "annotations/validation"):
        (tmp_path / name).mkdir(parents=True)
    names = ["wall", "building, edifice", "sky", *(f"thing {number}" for number in range(147))]
    lines = [
        "Idx\tRatio\tTrain\tVal\tStuff\tName",
        *(f"{place + 1}\t0.1\t9\t1\t1\t{name}" for place, name in enumerate(names)),
    ]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(lines) + "\n")
    to_pil(natural_like(1, 16)[0]).save(tmp_path / "images/validation/ADE_val_1.jpg")
    indices = np.array([0, 1, 2, 150]).repeat(4)[None].repeat(16, axis=0)
    Image.fromarray(indices.astype(np.uint8)).save(tmp_path / "annotations/validation/ADE_val_1.png")
    return tmp_path


def test_ade20k_counts_from_one_and_none_is_unlabelled(ade):
    data = ade20k_masks(ade, side=8)
    assert data.class_names[:3] == ("wall", "building", "sky")
    assert data[0].mask[0].tolist() == [UNLABELLED, UNLABELLED, 0, 0, 1, 1, 149, 149]


def test_what_is_missing_in_ade20k_is_named(ade):
    with pytest.raises(DataError, match="has no images/training"):
        ade20k_masks(ade, split="training", side=8)
    (ade / "objectInfo150.txt").write_text("Idx\tName\n1\twall\n")
    with pytest.raises(DataError, match="names 1 classes, expected 150"):
        ade20k_masks(ade, side=8)
