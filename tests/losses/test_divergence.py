from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from ironclip.losses.divergence import kl_divergence, kl_divergence_loss
from oracles import logit_objectives as oracle
from oracles.classification import central_difference


def draw(rows, classes, scale=5.0):
    random = torch.Generator().manual_seed(rows + 100 * classes)
    return (scale * torch.randn(rows, classes, generator=random, dtype=torch.float64) for _ in range(2))


def _kl_from(logits, target):
    return oracle.kl(target, logits)


def test_golden_values():
    """Target first, and the other way round; both without a division by C."""
    target, student = torch.tensor([[2.0, 1.0, 0.0]]).double(), torch.tensor([[0.0, 0.5, 1.0]]).double()
    assert kl_divergence(target, student).item() == pytest.approx(0.63547928, rel=1e-8)
    assert kl_divergence(student, target).item() == pytest.approx(0.70757130, rel=1e-8)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("classes", [2, 3, 10, 200])
def test_equals_the_oracle(classes, scale):
    target, logits = draw(6, classes, scale)
    expected = [oracle.kl(*rows) for rows in zip(target.tolist(), logits.tolist(), strict=True)]
    assert kl_divergence(target, logits).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-14)
    assert kl_divergence_loss(target, logits).item() == pytest.approx(np.mean(expected), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_zero_between_equals(dtype):
    target = 100 * torch.randn(8, 10, generator=torch.Generator().manual_seed(0), dtype=dtype)
    assert (kl_divergence(target, target.clone()) == 0).all()
    # Logits that differ by a constant are one prediction.
    assert kl_divergence(target, target + 1).abs().max() < 1e3 * torch.finfo(dtype).eps


def test_gradient_equals_differences_by_both_arguments():
    target, logits = (rows.requires_grad_() for rows in draw(3, 4, 2.0))
    kl_divergence(target, logits).sum().backward()
    for row in range(3):
        t, z = target[row].tolist(), logits[row].tolist()
        by_target = central_difference(partial(_kl_from, z), t)
        by_logits = central_difference(partial(oracle.kl, t), z)
        np.testing.assert_allclose(target.grad[row], by_target, atol=1e-8)
        np.testing.assert_allclose(logits.grad[row], by_logits, atol=1e-8)


def test_gradient_stays_finite_where_a_share_is_zero():
    target = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    logits = torch.tensor([[-200.0, 0.0, 200.0]], requires_grad=True)
    value = kl_divergence(target, logits)
    value.sum().backward()
    assert value.item() == pytest.approx(400.0)
    assert logits.grad.tolist() == [[-1.0, 0.0, 1.0]]
    assert torch.isfinite(target.grad).all()
