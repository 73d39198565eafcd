"""Text-guided attention maps: how much each place of an image looks like a text, and how far two maps are apart.

Source: Yu et al., NeurIPS 2024, arXiv:2410.21802 (TGA-ZSR); the complement in the map, arXiv:2603.18598 (Comp-TGA).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def patch_cosines(patches: Tensor, text: Tensor) -> Tensor:
    """Cosine of each patch with the text of its image.

    Args:
        patches: Projected patch tokens `[B, P, D]`.
        text: `[B, D]`, of any length.

    Returns:
        `[B, P]` in [-1, 1].
    """
    return _scores(F.normalize(patches, dim=-1), text)


def token_axis_scores(tokens: Tensor, text: Tensor) -> Tensor:
    """Score patches as TGA-ZSR's published code does: each column of D has unit length over the tokens.

    A patch's score therefore hangs on all other tokens, the class token among them, and is no cosine.

    Args:
        tokens: Projected tokens `[B, 1 + P, D]`, the class token first.
        text: `[B, D]`, of any length.

    Returns:
        `[B, P]`.
    """
    return _scores(F.normalize(tokens, dim=1)[:, 1:], text)


def attention_map(scores: Tensor, side: int) -> Tensor:
    """Bring scores to [0, 1] an image and enlarge them to the size of the image; a map without contrast is all 0.

    Gradients flow through minimum and maximum too, as published.

    Args:
        scores: `[B, P]`, patches in reading order, P a square number.
        side: Of the map in pixels.

    Returns:
        `[B, side * side]`, bilinear with half-pixel centres.
    """
    low, high = scores.amin(dim=1, keepdim=True), scores.amax(dim=1, keepdim=True)
    # The guard against a division by 0 must not move the other maps, as adding 1e-8 would.
    spread = torch.where(high - low > 1e-8, high - low, 1.0)
    grid = math.isqrt(scores.shape[1])
    small = ((scores - low) / spread).reshape(-1, 1, grid, grid)
    return F.interpolate(small, size=(side, side), mode="bilinear", align_corners=False).flatten(1)


def map_distance_loss(attention: Tensor, reference: Tensor) -> Tensor:
    """Mean over the batch of the L2 distance of two maps `[B, N]`: not squared, and not divided by N.

    The gradient of equal maps is 0. The distance grows with the side of the map.
    """
    distance: Tensor = torch.linalg.vector_norm(attention - reference, dim=1)
    return distance.mean()


def _scores(tokens: Tensor, text: Tensor) -> Tensor:
    return torch.einsum("bpd,bd->bp", tokens, F.normalize(text, dim=-1))
