"""Random views: functions of the sample alone, inside [0, 1], and exactly what they say."""

from __future__ import annotations

import pytest
import torch

from ironclip.pretraining.augmentation import Draws, View, change_view, kept_patches, mix_images
from made_up_images import natural_like

KEYS = [f"toy/train/{number}" for number in range(12)]
EPOCHS = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
STRONG = View(zoom=0.4, flip=True, colour=0.4)


@pytest.fixture
def images():
    return natural_like(12, 32)


def test_a_view_does_not_depend_on_the_batch(images):
    whole = change_view(images, Draws.of(KEYS, EPOCHS, 7), STRONG)
    order = torch.tensor([5, 0, 11])
    some = change_view(images[order], Draws.of([KEYS[i] for i in order], [EPOCHS[i] for i in order], 7), STRONG)
    assert torch.equal(some, whole[order])


def test_another_epoch_or_seed_gives_another_view(images):
    views = [
        change_view(images, Draws.of(KEYS, [epoch] * 12, seed), STRONG) for epoch, seed in ((0, 7), (1, 7), (0, 8))
    ]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (views[one] - views[other]).abs().amax(dim=(1, 2, 3)).min() > 0.01


def test_views_are_images(images):
    views = change_view(images, Draws.of(KEYS, EPOCHS, 7), STRONG)
    assert views.shape == images.shape
    assert views.min() >= 0
    assert views.max() <= 1


def test_nothing_to_change_changes_nothing(images):
    views = change_view(images, Draws.of(KEYS, EPOCHS, 7), View(zoom=1, flip=False, colour=0))
    torch.testing.assert_close(views, images, rtol=0, atol=1e-5)


def test_a_flip_mirrors_half_of_the_images(images):
    keys = [f"sample {number}" for number in range(400)]
    draws = Draws.of(keys, [0] * 400, 0)
    views = change_view(images[:1].expand(400, -1, -1, -1), draws, View(zoom=1, flip=True, colour=0))
    same = (views - images[0]).abs().amax(dim=(1, 2, 3)) < 1e-4
    mirrored = (views - images[0].flip(-1)).abs().amax(dim=(1, 2, 3)) < 1e-4
    assert bool((same ^ mirrored).all())
    assert 150 < int(mirrored.sum()) < 250


def test_a_mixed_label_weighs_as_many_pixels_as_it_has(images):
    flat = torch.arange(12.0).view(-1, 1, 1, 1).expand(12, 3, 32, 32)
    mixed, partner, own = mix_images(flat, Draws.of(KEYS, EPOCHS, 3), share=1.0)
    for row in range(12):
        pixels = mixed[row, 0]
        assert set(pixels.unique().tolist()) <= {float(row), float(partner[row])}
        assert float((pixels == row).float().mean()) == pytest.approx(float(own[row]), abs=1e-6)
    assert partner.tolist() == [*range(1, 12), 0]
    assert float(own.min()) >= 0.5 - 2 / 32
    assert len(own.unique()) > 6


def test_only_a_share_is_mixed(images):
    keys = [f"sample {number}" for number in range(600)]
    pixels = torch.rand(600, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    draws = Draws.of(keys, [0] * 600, 0)
    mixed, _, own = mix_images(pixels, draws, share=0.3)
    touched = (mixed != pixels).flatten(1).any(dim=1)
    assert torch.equal(touched, own < 1)
    assert 0.22 < float(touched.float().mean()) < 0.34  # boxes that round to nothing touch nothing
    untouched, _, whole = mix_images(pixels, draws, share=0.0)
    assert torch.equal(untouched, pixels)
    assert bool((whole == 1).all())


def test_kept_patches_are_a_fair_draw_of_each_sample():
    keys = [f"sample {number}" for number in range(500)]
    kept = kept_patches(keys, [0] * 500, 1, 16, 8)
    assert kept.shape == (500, 8)
    assert bool((kept.diff(dim=1) > 0).all())
    counts = kept.flatten().bincount(minlength=16)
    assert int(counts.min()) > 190
    assert int(counts.max()) < 310
    assert torch.equal(kept_patches(keys[7:9], [0, 0], 1, 16, 8), kept[7:9])
    assert not torch.equal(kept_patches(keys, [1] * 500, 1, 16, 8), kept)
