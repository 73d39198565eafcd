"""MMCoA's loss, read literally: cosines, a softmax a row and a column, by loops over Python floats."""

from __future__ import annotations

import math
from collections.abc import Sequence

from oracles.classification import soft_cross_entropy

Rows = Sequence[Sequence[float]]


def both_directions(images: Rows, texts: Rows, scale: float, positives: Rows) -> tuple[float, float]:
    """Image to text and text to image, each positive of a row with an equal share."""

    def unit(row: Sequence[float]) -> list[float]:
        length = math.sqrt(math.fsum(x * x for x in row))
        return [x / length for x in row]

    def direction(queries: Rows, targets: Rows, right: Rows) -> float:
        losses = []
        for query, own in zip(queries, right, strict=True):
            logits = [scale * math.fsum(a * b for a, b in zip(unit(query), unit(t), strict=True)) for t in targets]
            losses.append(soft_cross_entropy(logits, [float(x) / sum(own) for x in own]))
        return math.fsum(losses) / len(losses)

    columns = list(zip(*positives, strict=True))
    return direction(images, texts, positives), direction(texts, images, columns)


def mmcoa(image: Rows, image_adv: Rows, text: Rows, text_adv: Rows, scale: float, positives: Rows, a: float, b: float):
    """The two halves, weighted: attacked images with clean texts, clean images with attacked texts."""
    return (
        a * sum(both_directions(image_adv, text, scale, positives)),
        b * sum(both_directions(image, text_adv, scale, positives)),
    )
