from __future__ import annotations

import io
import random
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as reference

from ironclip.data.images import FORMATS, UNREADABLE, Resizing, open_image, to_pixels
from made_up_shards import encoded, levels


def test_pixels_are_levels_over_255_exactly() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = to_pixels(Image.fromarray(np.stack([ramp, ramp.T, ramp[::-1]], axis=-1)))
    assert pixels.dtype == torch.float32
    assert pixels.shape == (3, 16, 16)
    assert pixels.is_contiguous()
    for channel, plane in zip(pixels, (ramp, ramp.T, ramp[::-1]), strict=True):
        np.testing.assert_array_equal(channel.numpy(), (plane.astype(np.float64) / 255).astype(np.float32))


def test_agrees_with_torchvision() -> None:
    image = Image.fromarray(levels(1))
    torch.testing.assert_close(to_pixels(image), reference.to_tensor(image), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(64, 64), (37, 50), (50, 37), (20, 31)])
def test_size_is_shorter_side_then_centre_square_as_in_torchvision(shape: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    expected = reference.center_crop(reference.resize(image, 24, reference.InterpolationMode.BICUBIC), [24, 24])
    torch.testing.assert_close(to_pixels(image, Resizing(size=24)), reference.to_tensor(expected), rtol=0, atol=0)


def test_resized_pixels_stay_on_the_8_bit_grid() -> None:
    pixels = to_pixels(Image.fromarray(levels(2, 64)), Resizing(resize=32))
    assert pixels.shape == (3, 32, 32)
    on_grid = torch.round(pixels.double() * 255)
    assert (pixels.double() * 255 - on_grid).abs().max() < 1e-4
    assert len(on_grid.unique()) > 100


def test_resize_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[::2] = 255
    pixels = to_pixels(Image.fromarray(stripes), Resizing(resize=16))
    assert (pixels - 0.5).abs().max() < 0.1  # without a filter whole rows would be black or white


def test_resize_to_the_same_size_changes_nothing() -> None:
    image = Image.fromarray(levels(3, 32))
    assert torch.equal(to_pixels(image, Resizing(resize=32)), to_pixels(image))


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
def test_every_8_bit_mode_becomes_rgb(mode: str) -> None:
    assert to_pixels(Image.new(mode, (5, 4))).shape == (3, 4, 5)


def test_deep_images_are_refused_instead_of_clipped_to_white() -> None:
    deep = Image.fromarray(np.full((4, 4), 4000, dtype=np.uint16))
    with pytest.raises(ValueError, match="more than 8 bits"):
        to_pixels(deep)


def test_formats_that_run_code_are_not_opened() -> None:
    postscript = io.BytesIO()
    Image.fromarray(levels(0)).save(postscript, "EPS")
    with pytest.raises(OSError, match="cannot identify"):
        open_image(postscript.getvalue())


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "QOI", "TGA"])
def test_damage_raises_only_what_readers_catch(form: str) -> None:
    assert form in FORMATS.values()
    whole, chance = encoded(5, 16, form), random.Random(form)
    refused = 0
    for trial in range(150):
        damaged = bytearray(whole)
        if trial % 2:
            del damaged[chance.randrange(len(damaged)) :]
        for _ in range(4 * (trial % 2 == 0)):
            damaged[chance.randrange(min(len(damaged), 200))] = chance.randrange(256)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = open_image(bytes(damaged))
                if image.width * image.height < 10**6:
                    to_pixels(image)
        except UNREADABLE:
            refused += 1
    assert refused > 20
