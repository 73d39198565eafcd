"""MPM-NCE against the stored reference values and in closed form."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F

from ironclip.losses.contrastive import mpm_nce_loss
from reference_values import FILE, needs_reference_values


def cases():
    if not FILE.is_file():
        return []
    return [case for case in json.loads(FILE.read_text())["cases"] if case["name"] == "mpm_nce"]


@needs_reference_values
@pytest.mark.parametrize("number", range(6))
def test_equals_the_reference_values(number):
    found = cases()
    assert len(found) == 6
    inputs, value = found[number]["inputs"], float(found[number]["value"])
    image, text = (F.normalize(torch.tensor(inputs[name], dtype=torch.float64), dim=1) for name in ("image", "text"))
    settings = {"temperature": inputs["tau"], "smoothing": inputs["smoothing"], "margin": inputs["margin"]}
    loss = mpm_nce_loss(image @ text.T, torch.tensor(inputs["positives"]).bool(), **settings)
    assert loss.item() == pytest.approx(value, rel=1e-9)


def test_gradient_equals_central_differences():
    similarity = torch.rand(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    positives = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]]).bool()
    assert torch.autograd.gradcheck(
        lambda x: mpm_nce_loss(x, positives, temperature=0.1, smoothing=0.1, margin=0.05), (similarity,)
    )


def test_closed_forms():
    settings = {"temperature": 0.01, "smoothing": 0.3, "margin": 0.2}
    one_class = mpm_nce_loss(torch.zeros(4, 4), torch.ones(4, 4).bool(), **(settings | {"smoothing": 0.0}))
    assert one_class.item() == pytest.approx(math.log(4), rel=1e-6)
    pairs = mpm_nce_loss(torch.zeros(2, 2), torch.eye(2).bool(), temperature=1.0, smoothing=0.0, margin=0.2)
    assert pairs.item() == pytest.approx(math.log(1 + math.exp(0.2)), rel=1e-6)
