"""InfoNCE with several positives: reference values, an oracle by loops, differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ironclip.losses.contrastive import pair_losses, shared_pair_losses
from oracles import mmcoa as oracle
from oracles.classification import central_difference
from reference_values import TOLERANCES, needs_reference_values, reference_inputs, reference_value


def draw(count=5, width=4):
    random = torch.Generator().manual_seed(count)
    images, texts = torch.randn(2, count, width, generator=random, dtype=torch.float64)
    labels = torch.arange(count) % 2
    return images, texts, labels[:, None] == labels[None, :]


def logits_of(images, texts, scale):
    return scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T


@needs_reference_values
@pytest.mark.parametrize("name", ["info_nce_multi_positive", "info_nce_arange"])
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_equals_the_reference(name, dtype, tolerance):
    inputs = reference_inputs(name, dtype)
    logits = logits_of(inputs["image"], inputs["text"], inputs["logit_scale"])
    found = [loss.item() for loss in shared_pair_losses(logits, inputs["positives"])]
    assert found == pytest.approx(reference_value(name), rel=tolerance)


def test_equals_the_oracle():
    images, texts, positives = draw()
    found = shared_pair_losses(logits_of(images, texts, 7.0), positives)
    expected = oracle.both_directions(images.tolist(), texts.tolist(), 7.0, positives.double().tolist())
    assert [loss.item() for loss in found] == pytest.approx(expected, rel=1e-12)


def test_positives_need_not_be_symmetric():
    images, texts, _ = draw(3)
    positives = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1]])
    found = shared_pair_losses(logits_of(images, texts, 7.0), positives)
    expected = oracle.both_directions(images.tolist(), texts.tolist(), 7.0, positives.tolist())
    assert [loss.item() for loss in found] == pytest.approx(expected, rel=1e-12)


def test_gradient_equals_differences():
    images, texts, positives = draw(3)
    leaf = logits_of(images, texts, 3.0).requires_grad_(True)
    torch.stack(shared_pair_losses(leaf, positives)).sum().backward()

    def loss(flat):
        logits = torch.tensor(np.reshape(flat, (3, 3)))
        return sum(one.item() for one in shared_pair_losses(logits, positives))

    expected = central_difference(loss, leaf.detach().flatten().tolist())
    np.testing.assert_allclose(leaf.grad.flatten(), expected, rtol=1e-6, atol=1e-9)


def test_with_one_positive_a_row_it_is_the_plain_form():
    images, texts, _ = draw()
    logits = logits_of(images, texts, 7.0)
    for found, expected in zip(shared_pair_losses(logits, torch.eye(5)), pair_losses(logits), strict=True):
        assert found.item() == pytest.approx(expected.item(), rel=1e-12)
