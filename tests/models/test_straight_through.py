"""A step without gradients, and the identity in its place on the way back."""

from __future__ import annotations

import torch

from ironclip.models.straight_through import StraightThrough
from ironclip.models.zero_shot import PythonClassifier

WEIGHT = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))


def test_the_step_forwards_and_the_identity_backwards():
    inner = PythonClassifier(lambda images: (images.flatten(1) @ WEIGHT.T).square())
    model = StraightThrough(inner, lambda images: (8 * images).floor() / 8)
    pixels = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    moved = ((8 * pixels).floor() / 8).detach().requires_grad_(True)
    torch.testing.assert_close(model.logits(pixels), inner.logits(moved))
    (found,) = torch.autograd.grad(model.logits(pixels).sum(), pixels)
    (expected,) = torch.autograd.grad(inner.logits(moved).sum(), moved)
    torch.testing.assert_close(found, expected)
    assert found.abs().sum() > 0
