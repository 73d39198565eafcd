from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ironclip.losses.contrastive import in_batch_loss, pair_losses
from oracles import contrastive as oracle
from oracles.classification import central_difference
from reference_values import TOLERANCES, needs_reference_values, reference_inputs, reference_value


def draw(rows, classes, scale=3.0):
    random = torch.Generator().manual_seed(rows + 100 * classes)
    logits = scale * torch.randn(rows, classes, generator=random, dtype=torch.float64)
    return logits, torch.randint(classes, (rows,), generator=random)


@needs_reference_values
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_in_batch_loss_is_ft_adv_of_the_reference(dtype, tolerance):
    inputs = reference_inputs("ft_adv", dtype)
    similarity = F.normalize(inputs["adv"], dim=-1) @ F.normalize(inputs["text"], dim=-1).T
    loss = in_batch_loss(inputs["logit_scale"] * similarity, inputs["labels"])
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(reference_value("ft_adv")[0], rel=tolerance)


@needs_reference_values
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_pair_losses_are_info_nce_of_the_reference(dtype, tolerance):
    inputs = reference_inputs("info_nce_arange", dtype)
    similarity = F.normalize(inputs["image"], dim=-1) @ F.normalize(inputs["text"], dim=-1).T
    found = [loss.item() for loss in pair_losses(inputs["logit_scale"] * similarity)]
    assert found == pytest.approx(reference_value("info_nce_arange"), rel=tolerance)


def test_golden_value():
    image = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]], dtype=torch.float64)
    text = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
    assert [loss.item() for loss in pair_losses(image @ text.T)] == pytest.approx(
        [0.81014717] * 2, rel=1e-6
    )  # as exact as the plan says it is


@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (5, 2), (6, 10), (8, 200)])
def test_in_batch_loss_equals_the_oracle(rows, classes):
    logits, labels = draw(rows, classes)
    expected = oracle.in_batch(logits.tolist(), labels.tolist())
    assert in_batch_loss(logits, labels).item() == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_gradient_equals_differences():
    logits, labels = draw(4, 3)
    leaf = logits.clone().requires_grad_(True)
    in_batch_loss(leaf, labels).backward()
    expected = central_difference(
        lambda flat: oracle.in_batch(np.reshape(flat, (4, 3)).tolist(), labels.tolist()), logits.flatten().tolist()
    )
    np.testing.assert_allclose(leaf.grad.flatten(), expected, rtol=1e-6, atol=1e-9)


def test_images_of_one_class_are_each_others_negatives():
    """As published: the loss cannot fall below the mean logarithm of how often a label occurs."""
    labels = torch.tensor([0, 0, 0, 1])
    perfect = 1000 * F.one_hot(labels, 2).double()
    assert in_batch_loss(perfect, labels).item() == pytest.approx(3 / 4 * math.log(3))
    assert in_batch_loss(perfect[[0, 3]], labels[[0, 3]]).item() == 0.0


def test_classes_that_the_batch_lacks_do_not_matter():
    logits, labels = draw(5, 10)
    absent = [k for k in range(10) if k not in labels.tolist()]
    other = logits.clone()
    other[:, absent] = 50.0
    assert absent
    assert in_batch_loss(other, labels) == in_batch_loss(logits, labels)
