"""A user's own model, as `python:convnet:clean` and `python:convnet:robust` find it: it knows nothing of IronCLIP.

The item that trains it (`evaluation_convnet`) lays a copy of this file beside the weights.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent


class ConvNet(nn.Module):
    """Three convolutions that halve the image each, and a linear layer: 32 x 32 pixels to ten classes."""

    def __init__(self) -> None:
        super().__init__()
        pairs = itertools.pairwise((3, 16, 32, 64))
        self.convolutions = nn.ModuleList(nn.Conv2d(old, new, 3, stride=2, padding=1) for old, new in pairs)
        self.classes = nn.Linear(64 * 4 * 4, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        maps = 4 * (pixels - 0.5)
        for convolution in self.convolutions:
            maps = F.relu(convolution(maps))
        scores: Tensor = self.classes(maps.flatten(1))
        return scores


def load(path: Path) -> ConvNet:
    """Read weights."""
    net = ConvNet()
    net.load_state_dict(torch.load(path, weights_only=True))
    return net.eval()


def clean() -> ConvNet:
    """Make the one that was trained on images as they are."""
    return load(HERE / "clean.pt")


def robust() -> ConvNet:
    """Make the one that was trained on attacked images."""
    return load(HERE / "robust.pt")
