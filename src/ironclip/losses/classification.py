"""Losses of logits against labels: what classifiers minimise and what attackers maximise.

Logits include the logit scale (CLIP: 100 times the cosine). Functions named `*_loss` are means over the batch; the
others return one value a row, which an attacker sums.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over the batch of `-sum_c target_c log softmax(logits)_c`.

    Args:
        logits: `[B, C]`.
        target: Labels `[B]` int64, or soft labels `[B, C]` with rows that sum to 1.

    Returns:
        Scalar. Source: TeCoA (Mao et al., ICLR 2023), where the classes are all class prompts.
    """
    return F.cross_entropy(logits, target)


def _without(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logits with the true class at minus infinity."""
    return logits.scatter(1, labels[:, None], -torch.inf)


def _at(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.gather(1, labels[:, None]).squeeze(1)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Best wrong logit minus the true one, `[B]`: positive where the answer is wrong. Valid for C >= 2.

    Source: Carlini and Wagner, 2017, arXiv:1608.04644, f6 without confidence. The true class is masked with minus
    infinity: masking with 0, as published code does, is wrong where all other logits are negative.
    """
    return _without(logits, labels).amax(dim=1) - _at(logits, labels)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy `[B]`, in the form `softplus(logsumexp_{c != y} z_c - z_y)`. Valid for C >= 2.

    The usual form has a gradient of exactly 0 towards the true logit from a margin of about 17 on (float32), which
    CLIP's margins at scale 100 reach; this one keeps it up to about 88.
    """
    rivals = _without(logits, labels)
    # Not torch.logsumexp and F.softplus: on CPUs they take the last entries of a batch by another code than the rest,
    # so that the last bit of a row hangs on its place. log_softmax and logsigmoid treat all rows alike.
    best = rivals.argmax(dim=1)
    log_sum = _at(rivals, best) - _at(F.log_softmax(rivals, dim=1), best)
    return -F.logsigmoid(_at(logits, labels) - log_sum)


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy `[B]` against probabilities `[B, C]`: that of the likeliest class, and what the others are behind.

    As `cross_entropy`, it keeps its gradient where the prediction is sure. Valid for C >= 2.
    """
    likeliest = target.argmax(dim=1)
    others = target.scatter(1, likeliest[:, None], 0.0)
    behind = _at(logits, likeliest)[:, None] - logits
    return cross_entropy(logits, likeliest) + (others * behind).sum(dim=1)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio, `[B]`: the margin over the distance of the largest to the third-largest logit.

    For C = 2, and for rows whose three largest logits are practically equal or not three, it is the margin.

    Source: Croce and Hein, ICML 2020, arXiv:2003.01690, equation 6; the substitutions are ours.
    """
    difference = margin(logits, labels)
    if logits.shape[1] < 3:
        return difference
    top = logits.topk(3, dim=1).values
    spread = top[:, 0] - top[:, 2]
    flat = (spread < 1e-6 * top[:, 0].abs().clamp(min=1)) | torch.isneginf(top[:, 2])
    return torch.where(flat, difference, difference / (torch.where(flat, 1.0, spread) + 1e-12))


def targeted_margin(logits: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
    """Target logit minus the true one, `[B]`. Valid for C >= 2."""
    return _at(logits, targets) - _at(logits, labels)


def targeted_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of the target, `[B]`. Valid for C >= 2."""
    return -cross_entropy(logits, targets)


def targeted_dlr(logits: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
    """Targeted difference of logits ratio, `[B]`; the targeted margin for C <= 3 and for flat rows.

    Source: Croce and Hein, ICML 2020, arXiv:2003.01690, equation 7. With C = 3 a shorter denominator would make the
    loss constant, so the margin stands in.
    """
    difference = targeted_margin(logits, targets, labels)
    if logits.shape[1] < 4:
        return difference
    top = logits.topk(4, dim=1).values
    spread = top[:, 0] - (top[:, 2] + top[:, 3]) / 2
    flat = spread < 1e-6 * top[:, 0].abs().clamp(min=1)
    return torch.where(flat, difference, difference / (torch.where(flat, 1.0, spread) + 1e-12))
