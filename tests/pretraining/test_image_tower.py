"""The tower with some of its patches, against open_clip's own modules; the loss, against loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ironclip.models.fast import pack
from ironclip.pretraining.image_tower import embed_patches_kept, one_word_apart, prompt_loss, zero_shot_accuracy


def stock_with_patches(clip, pixels, kept):
    """open_clip's modules on a subset of the tokens, one image at a time."""
    tower, rows = clip.visual, []
    for image, own in zip(clip.spec.preprocessing.normalise(pixels), kept, strict=True):
        patches = tower.conv1(image[None]).flatten(2).transpose(1, 2)[0]
        with_places = patches + tower.positional_embedding[1:]
        first = tower.class_embedding + tower.positional_embedding[0]
        x = tower.ln_pre(torch.cat([first[None], with_places[own]])[None])
        x = tower.transformer(x)
        rows.append(tower.ln_post(x[:, 0]) @ tower.proj)
    return torch.cat(rows)


def test_some_patches_as_open_clip_would_see_them(tiny_clip, pixels):
    clip = tiny_clip()
    kept = torch.tensor([[0, 3, 9, 15], [1, 2, 4, 8], [5, 6, 7, 10], [11, 12, 13, 14]])
    with torch.no_grad():
        ours = embed_patches_kept(pack(clip.visual, torch.float32), clip.spec.preprocessing.normalise(pixels), kept)
        stock = stock_with_patches(clip, pixels, kept)
    torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-5)


def test_all_patches_are_the_towers_own_pass(tiny_clip, pixels):
    clip = tiny_clip()
    with torch.no_grad():
        weights, normalised = pack(clip.visual, torch.float32), clip.spec.preprocessing.normalise(pixels)
        whole = embed_patches_kept(weights, normalised, None)
        listed = embed_patches_kept(weights, normalised, torch.arange(16).expand(4, -1))
        torch.testing.assert_close(whole, clip.embed_image(pixels), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(listed, whole, rtol=1e-5, atol=1e-6)


def test_gradients_reach_every_parameter_of_the_tower(tiny_clip, pixels):
    clip = tiny_clip()
    kept = torch.tensor([[0, 3, 9, 15]] * 4)
    embed_patches_kept(pack(clip.visual, torch.bfloat16), pixels, kept).square().sum().backward()
    for name, parameter in clip.visual.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name


def test_loss_divides_a_mixed_label():
    random = torch.Generator().manual_seed(1)
    features, texts = (F.normalize(torch.randn(n, 5, generator=random, dtype=torch.float64), dim=1) for n in (4, 3))
    labels, partner = torch.tensor([0, 2, 1, 2]), torch.tensor([1, 2, 3, 0])
    own, scale = torch.tensor([1.0, 0.75, 0.5, 0.9], dtype=torch.float64), torch.tensor(7.0, dtype=torch.float64)
    found = prompt_loss(features, texts, labels, partner, own, scale)
    for row in range(4):
        scores = [7.0 * sum(float(features[row, d]) * float(texts[c, d]) for d in range(5)) for c in range(3)]
        total = math.log(sum(math.exp(score) for score in scores))
        mine, other = total - scores[labels[row]], total - scores[labels[partner[row]]]
        expected = float(own[row]) * mine + (1 - float(own[row])) * other
        assert float(found[row]) == pytest.approx(expected, rel=1e-12)


def test_loss_tells_a_class_from_its_rivals_alone():
    random = torch.Generator().manual_seed(2)
    features, texts = (F.normalize(torch.randn(n, 5, generator=random, dtype=torch.float64), dim=1) for n in (2, 4))
    labels, own, scale = torch.tensor([0, 3]), torch.ones(2, dtype=torch.float64), torch.tensor(7.0)
    rivals = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], dtype=torch.bool)
    found = prompt_loss(features, texts, labels, torch.tensor([0, 1]), own, scale, rivals)
    for row, among in enumerate(([0, 1], [2, 3])):
        scores = {c: 7.0 * float(features[row] @ texts[c]) for c in among}
        expected = math.log(sum(math.exp(score) for score in scores.values())) - scores[int(labels[row])]
        assert float(found[row]) == pytest.approx(expected, rel=1e-12)


def test_rivals_share_all_words_but_one():
    names = ["red circle", "red square", "blue circle", "blue square", "circle"]
    expected = [[1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 0, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 1]]
    assert one_word_apart(names).int().tolist() == expected


def test_accuracy_of_images_and_of_classes():
    texts = torch.eye(3)
    features = torch.eye(3)[torch.tensor([0, 0, 0, 1, 2])]
    labels = torch.tensor([0, 0, 0, 0, 2])  # three of four cats, the only bird; no dog
    assert zero_shot_accuracy(features, texts, labels) == (pytest.approx(0.8), pytest.approx((0.75 + 1) / 2))
