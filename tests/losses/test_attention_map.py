from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from ironclip.losses.attention_map import attention_map, map_distance_loss, patch_cosines, token_axis_scores
from oracles import attention_map as oracle
from oracles.classification import central_difference
from reference_values import TOLERANCES, needs_reference_values, reference_inputs, reference_value

MODELS = ("tokens_adv", "tokens_clean", "tokens_teacher_clean")
SCORES = {
    "tga_zsr_maps": (patch_cosines, oracle.cosines),
    "tga_zsr_maps_code": (token_axis_scores, oracle.scores_over_tokens),
}


def draw(images, tokens, width, seed=0):
    random = torch.Generator().manual_seed(seed)
    return (
        torch.randn(images, tokens, width, generator=random, dtype=torch.float64),
        torch.randn(images, width, generator=random, dtype=torch.float64),
    )


@needs_reference_values
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("name", SCORES)
def test_map_distances_are_those_of_the_reference(name, dtype, tolerance):
    inputs = reference_inputs(name, dtype)
    scores, side = SCORES[name][0], int(inputs["size"])
    adv, clean, teacher = (attention_map(scores(inputs[m], inputs["text_of_label"]), side) for m in MODELS)
    found = [map_distance_loss(adv, teacher), map_distance_loss(clean, teacher)]
    assert all(loss.dtype == dtype for loss in found)
    assert [loss.item() for loss in found] == pytest.approx(reference_value(name), rel=tolerance)


@needs_reference_values
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_complementary_map_distances_are_those_of_the_reference(dtype, tolerance):
    inputs = reference_inputs("comp_tga_maps", dtype)

    def complementary(tokens):
        positive, negative = (
            attention_map(patch_cosines(tokens, inputs[text]), int(inputs["size"]))
            for text in ("text_of_label", "negative_text_of_label")
        )
        return positive * (1 - negative)

    adv, clean, teacher = (complementary(inputs[model]) for model in MODELS)
    found = [map_distance_loss(adv, teacher).item(), map_distance_loss(clean, teacher).item()]
    assert found == pytest.approx(reference_value("comp_tga_maps"), rel=tolerance)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize(("tokens", "side"), [(4, 6), (9, 7), (49, 20), (16, 4)])
def test_maps_equal_the_oracle(name, tokens, side):
    ours, theirs = SCORES[name]
    drawn, text = draw(3, tokens + (name == "tga_zsr_maps_code"), 5)
    found = attention_map(ours(drawn, text), side)
    expected = [oracle.attention_map(theirs(t, q), side) for t, q in zip(drawn.tolist(), text.tolist(), strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)
    assert found.shape == (3, side * side)
    assert ((found >= 0) & (found <= 1)).all()


@pytest.mark.parametrize("name", SCORES)
def test_gradient_equals_differences(name):
    """Through both scores, minimum and maximum, enlargement and norm."""
    ours, theirs = SCORES[name]
    tokens, text = draw(1, 4 + (name == "tga_zsr_maps_code"), 3)
    reference = torch.rand(1, 25, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaf = tokens.clone().requires_grad_(True)
    map_distance_loss(attention_map(ours(leaf, text), 5), reference).backward()

    def at(flat):
        scores = theirs(np.reshape(flat, tokens.shape[1:]).tolist(), text[0].tolist())
        return oracle.distance(oracle.attention_map(scores, 5), reference[0].tolist())

    expected = central_difference(at, tokens.flatten().tolist())
    np.testing.assert_allclose(leaf.grad.flatten(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("length", [1e-3, 1.0, 100.0])
def test_the_length_of_the_text_does_not_matter(length):
    tokens, text = draw(2, 9, 5)
    for scores in (patch_cosines, token_axis_scores):
        torch.testing.assert_close(scores(tokens, length * text), scores(tokens, text))


def test_enlarging_with_antialiasing_would_be_the_same():
    """Comp-TGA's code asks for it."""
    small = torch.rand(2, 1, 7, 7, dtype=torch.float64)
    plain = interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(interpolate(small, size=(32, 32), mode="bilinear", antialias=True), plain)


def test_a_map_without_contrast_is_zero_and_has_finite_gradients():
    patches = torch.ones(2, 4, 3, dtype=torch.float64, requires_grad=True)
    flat = attention_map(patch_cosines(patches, torch.eye(3, dtype=torch.float64)[:2]), 6)
    assert (flat == 0).all()
    (gradient,) = torch.autograd.grad(map_distance_loss(flat, torch.rand_like(flat)), patches)
    assert torch.isfinite(gradient).all()


def test_equal_maps_have_no_gradient():
    """At the first step the student is the teacher."""
    maps = torch.rand(3, 16, dtype=torch.float64, requires_grad=True)
    loss = map_distance_loss(maps, maps.detach().clone())
    loss.backward()
    assert loss.item() == 0
    assert (maps.grad == 0).all()


def test_distance_is_a_norm_and_its_mean_over_the_batch():
    zero, maps = torch.zeros(2, 4), torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    assert map_distance_loss(maps, zero).item() == 3.0
