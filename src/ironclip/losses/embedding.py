"""Losses between embeddings."""

from __future__ import annotations

from torch import Tensor


def squared_distance(embedding: Tensor, reference: Tensor) -> Tensor:
    """Squared L2 distance a row: `[B, D]`, `[B, D]` to `[B]`; summed over D, not divided by it."""
    return (embedding - reference).square().sum(dim=-1)


def squared_distance_loss(embedding: Tensor, reference: Tensor) -> Tensor:
    """Mean over the batch of `squared_distance`: FARE's loss on raw embeddings.

    Source: Schlarmann et al., ICML 2024, arXiv:2402.12336, equation 3.
    """
    return squared_distance(embedding, reference).mean()
