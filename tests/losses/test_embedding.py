from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ironclip.losses.embedding import squared_distance, squared_distance_loss

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
