"""In-batch contrastive losses, read literally: a softmax a row, a softmax a column, by loops over Python floats."""

from __future__ import annotations

from collections.abc import Sequence

from oracles.classification import log_sum_exp


def in_batch(logits: Sequence[Sequence[float]], labels: Sequence[int]) -> float:
    """Half of the loss of each image among the prompts of the batch's labels, half of each prompt among the images."""
    count = len(labels)
    images = sum(log_sum_exp([row[k] for k in labels]) - row[label] for row, label in zip(logits, labels, strict=True))
    texts = sum(log_sum_exp([row[k] for row in logits]) - logits[own][k] for own, k in enumerate(labels))
    return (images + texts) / 2 / count
