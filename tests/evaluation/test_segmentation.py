from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ironclip.attacks.apgd import APGD
from ironclip.attacks.objectives import input_gradient
from ironclip.attacks.threat_model import ThreatModel
from ironclip.data.masks import UNLABELLED, MaskedImage
from ironclip.errors import ConfigError, ShapeError, ValueRangeError
from ironclip.evaluation.iou import class_iou, confusion, mean_iou
from ironclip.evaluation.segmentation import Mislabel, Segmenter, evaluate_segmentation
from made_up_images import natural_like

NAMES, TEMPLATES = ("dog", "cat", "grass"), ("a photo of a {}.",)


@pytest.fixture
def segmenter(tiny_clip):
    return Segmenter(tiny_clip(), NAMES, TEMPLATES)


def test_a_patch_keeps_its_own_value_in_the_last_block(segmenter):
    """Against the block itself, with every patch alone: attention over one token gives that token's value."""
    model, pixels = segmenter.model, natural_like(2, 32)
    visual = model.visual
    with torch.no_grad():
        tokens = model.patch_tokens(pixels, layer=-2, projected=False)
        alone = visual.transformer.resblocks[-1](tokens.reshape(-1, 1, 64)).reshape(tokens.shape)
        expected = F.normalize(visual.ln_post(alone) @ visual.proj, dim=-1)
        found = segmenter.features(pixels)
    assert found.shape == (2, 16, 4, 4)
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), expected, rtol=0, atol=1e-5)


def test_logits_are_scaled_cosines_on_the_grid_of_patches(segmenter):
    pixels = natural_like(1, 32)
    with torch.no_grad():
        logits, features = segmenter.logits(pixels), segmenter.features(pixels)
        corner = 100 * features[0, :, 0, 0] @ segmenter.class_weights.T
    assert logits.shape == (1, 3, 32, 32)
    torch.testing.assert_close(logits[0, :, 0, 0], corner, rtol=1e-4, atol=1e-4)  # beyond the last centre: constant


@settings(max_examples=40, deadline=None)
@given(
    truth=st.lists(st.sampled_from([0, 1, 2, UNLABELLED]), min_size=1, max_size=30),
    seed=st.integers(0, 1000),
)
def test_shares_equal_those_counted_with_sets(truth, seed):
    said = np.random.default_rng(seed).integers(0, 3, len(truth)).tolist()
    shares = class_iou(confusion(truth, said, 3))
    for name, share in enumerate(shares):
        real = {place for place, value in enumerate(truth) if value == name}
        given = {place for place, value in enumerate(said) if value == name and truth[place] != UNLABELLED}
        assert share == (pytest.approx(len(real & given) / len(real | given)) if real else None)


def test_the_mean_runs_over_classes_that_occur():
    counts = confusion([[0, 0, 1, 255]], [[0, 2, 1, 1]], 3)
    assert counts.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert class_iou(counts) == [0.5, 1.0, None]
    assert mean_iou(counts) == 0.75


def test_unlabelled_pixels_do_not_steer(segmenter):
    masks = torch.full((2, 32, 32), UNLABELLED)
    masks[0, :8] = 1
    gradient, evaluation = input_gradient(Mislabel(segmenter, masks), natural_like(2, 32))
    assert evaluation.value[1] == 0
    assert gradient[1].abs().max() == 0
    logits = segmenter.logits(natural_like(2, 32))[0, :, :8]
    expected = F.cross_entropy(logits[None], torch.ones(1, 8, 32, dtype=torch.int64))
    torch.testing.assert_close(evaluation.value[0], expected.detach(), rtol=1e-5, atol=1e-5)


def test_masks_are_worse_under_attack_and_alike_in_any_tile(segmenter):
    pixels = natural_like(5, 32)
    with torch.no_grad():
        said = segmenter.logits(pixels).argmax(dim=1)  # a model that is right everywhere
    images = [MaskedImage(f"image {row}", pixels[row], said[row]) for row in range(5)]
    result = evaluate_segmentation(segmenter, images, APGD(steps=8), ThreatModel(eps="4/255"))
    assert mean_iou(result.clean) == 1
    assert mean_iou(result.attacked) < 0.7
    assert result.attacked.sum() == 5 * 32 * 32
    nothing = evaluate_segmentation(segmenter, images, APGD(steps=2), ThreatModel(eps="0"))
    assert np.array_equal(nothing.attacked, nothing.clean)


def test_what_does_not_fit_is_refused(segmenter, tiny_clip):
    with pytest.raises(ShapeError, match=r"images of 40x32\.\n.*square"):
        segmenter.logits(natural_like(1, 32, 40))
    with pytest.raises(ConfigError, match="is no vision transformer of two plain blocks"):
        Segmenter(tiny_clip(vision={"layers": 1}), NAMES, TEMPLATES)
    with pytest.raises(ShapeError, match=r"masks \(2,\) and predictions \(1,\)"):
        confusion([0, 1], [0], 2)
    with pytest.raises(ValueRangeError, match="classes from 0 to 4, of 2"):
        confusion([0, 4], [0, 0], 2)
    with pytest.raises(ValueRangeError, match="no labelled pixel"):
        mean_iou(confusion([UNLABELLED], [0], 2))
    with pytest.raises(ValueRangeError, match="0 images"):
        evaluate_segmentation(segmenter, [], APGD(), ThreatModel())
    images = [
        MaskedImage("a", torch.zeros(3, 8, 8), torch.zeros(8, 8).long()),
        MaskedImage("b", torch.zeros(3, 9, 9), torch.zeros(9, 9).long()),
    ]
    with pytest.raises(ShapeError, match="images of 2 sizes"):
        evaluate_segmentation(segmenter, images, APGD(), ThreatModel())
    with pytest.raises(ConfigError, match=r"does not compute in torch\.float64"):
        Mislabel(segmenter, torch.zeros(1, 32, 32).long()).computing(torch.float64)
