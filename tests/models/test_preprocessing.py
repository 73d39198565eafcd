"""Pixels on their way into a tower, against PIL and open_clip's own transforms."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from ironclip.errors import ConfigError, ShapeError, ValueRangeError
from ironclip.models.preprocessing import CLIP_MEAN, CLIP_STD, Preprocessing, check_pixels
from made_up_images import from_pil, natural_like, to_pil

SIZES = [(64, 64), (48, 80), (100, 33), (20, 24), (49, 98), (33, 32)]


def configured(**settings) -> Preprocessing:
    return Preprocessing.from_open_clip(settings, 32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kernel", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_pil_images_are_prepared_as_open_clip_does(size, kernel, mode):
    image = to_pil(natural_like(1, *size)[0])
    preprocessing = configured(interpolation=kernel, resize_mode=mode)
    stock = image_transform_v2(PreprocessCfg(size=32, interpolation=kernel, resize_mode=mode), is_train=False)
    ours = preprocessing.normalise(preprocessing.from_pil(image)[None])[0]
    torch.testing.assert_close(ours, stock(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kernel", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_resizing_inside_agrees_with_pil_up_to_its_rounding(size, kernel, mode):
    image = to_pil(natural_like(1, *size)[0])
    preprocessing = configured(interpolation=kernel, resize_mode=mode)
    inside = preprocessing.resize(from_pil(image)[None])[0]
    difference = (inside - preprocessing.from_pil(image).double()).abs()
    # PIL rounds to 8 bits after rows and again after columns: half a level each, the first spread by the kernel.
    assert difference.max() <= 1.5 / 255
    assert difference.mean() <= 0.4 / 255


def test_both_ways_cut_the_same_square():
    """Where sizes divide, no rounding may move the crop: PIL's way and ours have to land on the same new size."""
    for height in range(32, 120):
        for width in range(height, 3 * height, height):
            ramp = torch.linspace(0, 1, width).expand(1, 3, height, width)
            inside = Preprocessing(32).resize(ramp)[0, 0]
            outside = Preprocessing(32).from_pil(to_pil(ramp[0]))[0]
            assert (inside - outside).abs().max() < 1.5 / 255, (height, width)


def test_the_right_resolution_is_left_alone():
    pixels = natural_like(2, 32)
    assert Preprocessing(32).resize(pixels) is pixels


def test_resizing_is_differentiable():
    pixels = natural_like(1, 12, 10).double() * 0.6 + 0.2  # away from the cut at 0 and 1
    assert torch.autograd.gradcheck(Preprocessing(8).resize, pixels.requires_grad_(True))


def test_every_pixel_inside_the_crop_reaches_the_tower():
    pixels = (natural_like(2, 64, 96).double() * 0.6 + 0.2).requires_grad_(True)
    weights = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (Preprocessing(32).resize(pixels) * weights).sum().backward()
    inside = pixels.grad[..., 16:80]
    assert (inside != 0).all()
    assert (pixels.grad[..., :12] == 0).all()


def test_overshoot_of_the_kernel_stays_in_the_box():
    board = (torch.arange(64) // 8 % 2).float()
    board = (board[:, None] - board[None, :]).abs().expand(1, 3, 64, 64)
    resized = Preprocessing(48).resize(board)
    assert resized.min() == 0
    assert resized.max() == 1


def test_pil_images_become_pixels_in_the_unit_interval():
    for mode in ("RGB", "L", "RGBA", "P"):
        image = to_pil(natural_like(1, 40, 50)[0]).convert(mode)
        pixels = Preprocessing(32).from_pil(image)
        assert pixels.shape == (3, 32, 32)
        assert pixels.dtype == torch.float32
        assert pixels.min() >= 0
        assert 0.5 < pixels.max() <= 1
    white = Image.fromarray(np.full((32, 32, 3), 255, dtype=np.uint8))
    assert (Preprocessing(32).from_pil(white) == 1).all()


def test_normalises_by_clips_constants():
    preprocessing = configured()
    assert preprocessing.mean == CLIP_MEAN == open_clip.OPENAI_DATASET_MEAN
    assert preprocessing.std == CLIP_STD == open_clip.OPENAI_DATASET_STD
    mean = torch.tensor(CLIP_MEAN).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    torch.testing.assert_close(preprocessing.normalise(mean), torch.zeros(2, 3, 4, 4), rtol=0, atol=1e-7)


def test_other_constants_are_taken():
    preprocessing = configured(mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
    torch.testing.assert_close(preprocessing.normalise(torch.ones(1, 3, 2, 2)), torch.full((1, 3, 2, 2), 2.0))


def test_the_record_names_what_could_change_a_number():
    record = configured(interpolation="bilinear").record()
    assert {"resolution": 32, "kernel": "bilinear", "antialias": True, "backend": "torch"}.items() <= record.items()


@pytest.mark.parametrize("settings", [{"interpolation": "random"}, {"resize_mode": "longest"}])
def test_other_kernels_and_modes_are_refused(settings):
    with pytest.raises(ConfigError, match=r"asks for interpolation .*\n.*serves bicubic or bilinear"):
        configured(**settings)


@pytest.mark.parametrize(
    ("pixels", "error", "words"),
    [
        (torch.zeros(3, 8, 8), ShapeError, r"shape \(3, 8, 8\), expected \[B, 3, H, W\]"),
        (torch.zeros(2, 8, 8, 3), ShapeError, r"channels first"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ValueRangeError, r"torch.uint8.*\n.*pixels.float\(\) / 255"),
        (torch.full((1, 3, 8, 8), 200.0), ValueRangeError, r"from 200 to 200.*\n.*divide 0..255 by 255"),
        (torch.full((1, 3, 8, 8), torch.nan), ValueRangeError, "from nan to nan"),
        (torch.full((1, 3, 8, 8), torch.inf), ValueRangeError, "to inf"),
        (
            Preprocessing(8).normalise(natural_like(1, 8)),
            ValueRangeError,
            r"range from -\d.* to \d.*\n.*before mean and std are applied",
        ),
    ],
    ids=["three axes", "channels last", "8-bit", "0..255", "nan", "inf", "normalised"],
)
def test_what_is_no_image_is_refused(pixels, error, words):
    with pytest.raises(error, match=words):
        check_pixels(pixels)


def test_one_nan_among_good_pixels_is_seen():
    pixels = natural_like(2, 8)
    pixels[1, 2, 3, 4] = torch.nan
    with pytest.raises(ValueRangeError, match="nan"):
        check_pixels(pixels)


def test_slack_lets_a_training_attack_leave_the_box_a_little():
    pixels = torch.tensor([-0.05, 1.05]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    check_pixels(pixels, slack=0.06)
    with pytest.raises(ValueRangeError, match=r"-0.05 to 1.05"):
        check_pixels(pixels)
    check_pixels(torch.zeros(0, 3, 4, 4))
