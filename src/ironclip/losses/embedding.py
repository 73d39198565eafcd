"""Losses between embeddings."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def squared_distance(embedding: Tensor, reference: Tensor) -> Tensor:
    """Squared L2 distance a row: `[B, D]`, `[B, D]` to `[B]`; summed over D, not divided by it."""
    return (embedding - reference).square().sum(dim=-1)


def squared_distance_loss(embedding: Tensor, reference: Tensor) -> Tensor:
    """Mean over the batch of `squared_distance`: FARE's loss on raw embeddings.

    Source: Schlarmann et al., ICML 2024, arXiv:2402.12336, equation 3.
    """
    return squared_distance(embedding, reference).mean()


def cosine_loss(embedding: Tensor, reference: Tensor) -> Tensor:
    """Minus the mean cosine of the rows: `[B, D]`, `[B, D]` to a scalar in [-1, 1]."""
    return -F.cosine_similarity(embedding, reference, dim=-1).mean()


def stopped_cosine_loss(first: Tensor, second: Tensor) -> Tensor:
    """`cosine_loss`, half of it with a stop-gradient on the second argument, half with one on the first.

    Its value is that of `cosine_loss`, its gradient half of it: each argument is pulled towards where the other stands.

    Source: Hossain and Imteaj, arXiv:2407.14971; the stop-gradients are SimSiam's, Chen and He, CVPR 2021,
    arXiv:2011.10566, equation 4.
    """
    return (cosine_loss(first, second.detach()) + cosine_loss(second, first.detach())) / 2
