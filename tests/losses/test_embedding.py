from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ironclip.losses.embedding import cosine_loss, squared_distance, squared_distance_loss, stopped_cosine_loss
from oracles.classification import central_difference
from oracles.embedding import mean_cosine
from reference_values import TOLERANCES, needs_reference_values, reference_inputs, reference_value

CASES = {
    case["name"]: case
    for case in json.loads((Path(__file__).parents[1] / "vectors" / "spine_losses.json").read_text())["cases"]
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_squared_distance_loss_is_fare_of_the_reference(dtype, tolerance):
    inputs = CASES["fare"]["inputs"]
    adv, clean = (torch.tensor(inputs[name], dtype=dtype) for name in ("adv", "teacher_clean"))
    assert squared_distance_loss(adv, clean).item() == pytest.approx(float(CASES["fare"]["value"]), rel=tolerance)


def test_squared_distance_sums_over_the_width_and_not_over_the_batch():
    embedding = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, -2.0]])
    reference = torch.tensor([[0.0, 2.0, 5.0], [0.0, 0.0, 1.0]])
    assert squared_distance(embedding, reference).tolist() == [5.0, 9.0]
    assert squared_distance_loss(embedding, reference).item() == 7.0  # divided by the batch, not by the width


def test_gradient_is_twice_the_difference():
    embedding = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[0.5, 2.5], [3.0, 1.0]], dtype=torch.float64)
    squared_distance(embedding, reference).sum().backward()
    torch.testing.assert_close(embedding.grad, 2 * (embedding.detach() - reference))


# Cosines


def rows(count=4, width=5, seed=0):
    random = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(count, width, generator=random, dtype=torch.float64) for _ in range(2)]


@needs_reference_values
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize(("name", "against"), [("sim_clip_frozen", "teacher_clean"), ("sim_clip_self", "clean")])
def test_stopped_cosine_loss_is_sim_clip_of_the_reference(name, against, dtype, tolerance):
    inputs = reference_inputs(name, dtype)
    loss = stopped_cosine_loss(inputs["adv"], inputs[against])
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(reference_value(name)[0], rel=tolerance)


def test_cosine_loss_equals_the_oracle_and_ignores_lengths():
    first, second = rows()
    expected = -mean_cosine(first.tolist(), second.tolist())
    assert cosine_loss(first, second).item() == pytest.approx(expected, rel=1e-12)
    assert stopped_cosine_loss(first, second).item() == pytest.approx(expected, rel=1e-12)
    lengths = torch.tensor([[1.0], [1e-3], [7.0], [400.0]], dtype=torch.float64)
    assert cosine_loss(lengths * first, second).item() == pytest.approx(expected, rel=1e-12)
    assert cosine_loss(first, first).item() == pytest.approx(-1, rel=1e-12)


def test_stopped_cosine_loss_has_the_gradient_of_held_copies():
    """By differences of -cos(a, b0)/2 - cos(b, a0)/2, where a0 and b0 are copies that stay."""
    first, second = rows()
    leaves = [value.clone().requires_grad_(True) for value in (first, second)]
    stopped_cosine_loss(*leaves).backward()
    held = first.tolist(), second.tolist()

    def at(flat):
        a, b = np.reshape(flat, (2, 4, 5)).tolist()
        return -mean_cosine(a, held[1]) / 2 - mean_cosine(b, held[0]) / 2

    expected = central_difference(at, torch.stack([first, second]).flatten().tolist())
    found = torch.stack([leaf.grad for leaf in leaves]).flatten()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-10)


def test_stopped_cosine_loss_has_half_of_the_plain_gradient():
    leaves = [value.requires_grad_(True) for value in rows()]
    stopped = torch.autograd.grad(stopped_cosine_loss(*leaves), leaves)
    plain = torch.autograd.grad(cosine_loss(*leaves), leaves)
    for half, whole in zip(stopped, plain, strict=True):
        torch.testing.assert_close(2 * half, whole)
