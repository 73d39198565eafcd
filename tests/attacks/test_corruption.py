"""The fifteen corruptions against what is known of each, and as rows of an evaluation."""

from __future__ import annotations

import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image

from ironclip.attacks.corruption import CORRUPTIONS, Corruption, all_corruptions, corrupted
from ironclip.attacks.natural import blur, digital, noise, weather
from ironclip.attacks.natural.constants import LARGE, SMALL
from ironclip.cli.options import read_attack
from ironclip.errors import ConfigError
from made_up_images import natural_like

GREY = np.full((64, 64, 3), 0.5)


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def natural(side: int = 32, seed: int = 0) -> np.ndarray:
    return natural_like(1, side, seed=seed)[0].double().permute(1, 2, 0).numpy()


def test_there_are_fifteen_at_five_severities_for_both_sizes():
    assert len(CORRUPTIONS) == 15
    assert len(all_corruptions()) == len(set(all_corruptions())) == 75
    for table in (LARGE, SMALL):
        assert set(table) == set(CORRUPTIONS)
        assert all(len(rows) == 5 for rows in table.values())


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("size", [(32, 32), (72, 80)])
def test_gives_an_8_bit_image_that_hangs_on_the_draws_only(kind, size):
    pixels = natural_like(1, *size)[0]
    found = corrupted(pixels, kind, 5, draws())
    assert found.shape == pixels.shape
    assert found.dtype == torch.float32
    assert torch.equal((255 * found).round() / 255, found)
    assert not torch.equal(found, (255 * pixels).round() / 255)
    assert torch.equal(corrupted(pixels, kind, 5, draws()), found)
    fixed = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}
    assert torch.equal(corrupted(pixels, kind, 5, draws(1)), found) == (kind in fixed)


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("kind", sorted(set(CORRUPTIONS) - {"snow", "elastic_transform", "glass_blur", "frost"}))
def test_more_severe_is_farther_from_the_image(kind, size):
    """Snow, ice, glass and elastic constants trade one thing for another and are not ordered at every step."""
    pixels = natural_like(1, size, seed=1)[0] * 0.6 + 0.2
    moved = [float((corrupted(pixels, kind, level, draws()) - pixels).square().mean()) for level in (1, 3, 5)]
    assert moved[0] < moved[1] < moved[2]


@pytest.mark.parametrize("kind", ["snow", "elastic_transform", "glass_blur", "frost"])
def test_the_others_change_the_image_at_every_severity(kind):
    pixels = natural_like(1, 72, seed=1)[0]
    for level in range(1, 6):
        moved = float((corrupted(pixels, kind, level, draws()) - pixels).square().mean())
        assert 1e-5 < moved < 0.3


def test_noise_has_the_moments_it_is_named_for():
    normal = noise.gaussian_noise(GREY, draws(), 0.1) - 0.5
    assert abs(normal.mean()) < 0.004
    assert abs(normal.std() - 0.1) < 0.003
    shot = noise.shot_noise(GREY, draws(), 60)
    assert abs(shot.mean() - 0.5) < 0.004
    assert abs(shot.var() - 0.5 / 60) < 0.0005
    impulse = noise.impulse_noise(GREY, draws(), 0.2)
    assert set(np.unique(impulse)) == {0.0, 0.5, 1.0}
    assert abs((impulse != 0.5).mean() - 0.2) < 0.015
    assert abs((impulse == 1).mean() - 0.1) < 0.012


def test_blurs_leave_a_flat_image_as_it_is():
    for found in (
        blur.defocus_blur(GREY, draws(), 3, 0.1),
        blur.glass_blur(GREY, draws(), 0.7, 1, 2),
        blur.motion_blur(GREY, draws(), 10, 3),
        blur.zoom_blur(GREY, draws(), 1.11, 0.01),
        digital.elastic_transform(GREY, draws(), 10, 2, 5),
    ):
        np.testing.assert_allclose(found, GREY, atol=1e-12)


def test_the_disk_is_a_disk():
    sharp = blur.disk(6, 1e-9)
    assert sharp.shape == (17, 17)
    inside = sum(x * x + y * y <= 36 for x in range(-8, 9) for y in range(-8, 9))
    assert np.count_nonzero(sharp) == inside
    np.testing.assert_allclose(sharp[sharp > 0], 1 / inside)
    assert blur.disk(10, 0.5).shape == (21, 21)
    assert blur.disk(10, 0.5).sum() == pytest.approx(1)


def test_a_level_smear_is_a_one_sided_average_counted_by_hand():
    line = np.zeros((3, 9))
    line[1, 4] = 1
    weights = np.exp(-(np.arange(5) ** 2) / (2 * 1.5**2))
    smeared = blur.smear(line, 2, 1.5, 0.0)
    np.testing.assert_allclose(smeared[1], [*weights[::-1], 0, 0, 0, 0] / weights.sum(), atol=1e-12)
    assert not smeared[[0, 2]].any()
    np.testing.assert_allclose(blur.smear(line.T, 2, 1.5, 90.0), smeared.T, atol=1e-12)


def test_glass_only_swaps_pixels():
    image = natural(16)
    found = blur.glass_blur(image, draws(), 1e-9, 2, 3)
    pixels, swapped = (sorted(map(tuple, array.reshape(-1, 3).tolist())) for array in (image, found))
    assert pixels == swapped
    assert not np.array_equal(image, found)


def test_enlarging_keeps_the_middle_and_loses_the_border():
    ramp = np.tile(np.linspace(0, 1, 33), (33, 1))
    found = blur.enlarged(ramp, 1.5)
    assert found[16, 16] == pytest.approx(0.5, abs=0.02)
    assert found[0, 0] == pytest.approx(5 / 32, abs=0.02)
    np.testing.assert_allclose(blur.enlarged(ramp, 1.0), ramp, atol=1e-12)


def test_brightness_is_value_of_hsv():
    image = natural(8)
    found = digital.brightness(image, draws(), 0.2)
    for before, after in zip(image.reshape(-1, 3), found.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        np.testing.assert_allclose(after, colorsys.hsv_to_rgb(hue, saturation, min(value + 0.2, 1)), atol=1e-12)
    np.testing.assert_allclose(digital.brightness(np.zeros((1, 1, 3)), draws(), 0.2), 0.2)


def test_contrast_keeps_means_and_shrinks_deviations():
    image = natural(16)
    found = digital.contrast(image, draws(), 0.3)
    np.testing.assert_allclose(found.mean(axis=(0, 1)), image.mean(axis=(0, 1)))
    np.testing.assert_allclose(found.std(axis=(0, 1)), 0.3 * image.std(axis=(0, 1)))


def test_pixelate_and_jpeg_are_pillows():
    image = natural(32)
    blocks = digital.pixelate(image, draws(), 0.25).reshape(8, 4, 8, 4, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    assert np.abs(blocks[:, 0, :, 0] - image.reshape(8, 4, 8, 4, 3).mean(axis=(1, 3))).max() < 1.5 / 255
    file = io.BytesIO()
    Image.fromarray(np.rint(255 * image).astype(np.uint8)).save(file, "JPEG", quality=18)
    np.testing.assert_array_equal(digital.jpeg_compression(image, draws(), 18), np.asarray(Image.open(file)) / 255)


def test_elastic_without_any_shift_is_the_identity_and_tilt_moves_the_middle_little():
    image = natural(48)
    np.testing.assert_allclose(digital.elastic_transform(image, draws(), 0, 0, 0), image, atol=1e-9)
    ramp = np.repeat(np.tile(np.linspace(0, 1, 48), (48, 1))[:, :, None], 3, axis=2)
    tilted = digital.elastic_transform(ramp, draws(), 0, 0, 4)
    assert 0 < np.abs(tilted[24, 24] - ramp[24, 24]).max() < 6 / 47


def test_fog_and_plasma():
    cloud = weather.plasma(64, 2.0, draws())
    assert cloud.min() == 0
    assert cloud.max() == 1
    rough, smooth = (np.abs(np.diff(weather.plasma(64, decay, draws()), axis=0)).mean() for decay in (1.4, 3.0))
    assert rough > 2 * smooth
    black = weather.fog(np.zeros((8, 8, 3)), draws(), 1, 2)
    assert not black.any()
    found = weather.fog(natural(32), draws(), 1.5, 2)
    assert found.max() <= 1
    assert found.mean() > natural(32).mean()


def test_snow_and_frost_whiten():
    image = 0.5 * natural(64)
    for found in (
        weather.snow(image, draws(), *LARGE["snow"][2]).clip(0, 1),
        weather.frost(image, draws(), *LARGE["frost"][2]).clip(0, 1),
    ):
        assert found.mean() > image.mean() + 0.03


def test_it_is_built_from_the_command_line_and_named_in_its_rows():
    attack = read_attack("corruption:kind=fog,severity=5")
    assert attack == Corruption(kind="fog", severity=5)
    assert attack.loss_used(10) == "fog-5"


def test_errors():
    with pytest.raises(ConfigError, match=r'kind is "rain"\.\nGive one of gaussian_noise, '):
        Corruption(kind="rain")
    with pytest.raises(ConfigError, match=r"severity is 6\.\nGive 1, 2, 3, 4 or 5"):
        Corruption(severity=6)
    with pytest.raises(ConfigError, match="0 restarts"):
        Corruption(restarts=0)
