"""Divergences between two predictions over the same classes, natural logarithm.

The target comes first, and it is not stopped here: whether gradients flow into it is the method's to say.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def kl_divergence(target_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax(target_logits) || softmax(logits)) a row: `[B, C]`, `[B, C]` to `[B]`; summed over C, not divided."""
    target = F.log_softmax(target_logits, dim=-1)
    return (target.exp() * (target - F.log_softmax(logits, dim=-1))).sum(dim=-1)


def kl_divergence_loss(target_logits: Tensor, logits: Tensor) -> Tensor:
    """Mean over the batch of `kl_divergence` (what others call `batchmean`)."""
    return kl_divergence(target_logits, logits).mean()
