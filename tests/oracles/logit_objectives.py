"""Losses of adversarial tuning over class prompts, from raw embeddings, by loops over Python floats or mpmath numbers.

Every function takes rows of embeddings, un-normalised, and returns the terms of the loss, unweighted, by name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mpmath import exp, mp, mpf
from mpmath import log as mplog
from mpmath import sqrt as mpsqrt

from oracles import dirichlet
from oracles.classification import log_sum_exp, soft_cross_entropy
from oracles.embedding import cosine

Row = Sequence[float]
Rows = Sequence[Row]


def cosines(embeddings: Rows, texts: Rows) -> list[list[float]]:
    return [[cosine(embedding, text) for text in texts] for embedding in embeddings]


def softmax(logits: Row) -> list[float]:
    return [math.exp(z - log_sum_exp(logits)) for z in logits]


def kl(target: Row, logits: Row) -> float:
    """KL(softmax(target) || softmax(logits))."""
    behind = log_sum_exp(target) - log_sum_exp(logits)
    return math.fsum(p * (t - z - behind) for p, t, z in zip(softmax(target), target, logits, strict=True))


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _scaled(rows: Rows, scale: float) -> list[list[float]]:
    return [[scale * value for value in row] for row in rows]


def _one_hot(labels: Sequence[int], classes: int) -> Rows:
    return [[float(index == label) for index in range(classes)] for label in labels]


def pmg_aft(adv: Rows, clean: Rows, teacher_adv: Rows, texts: Rows, labels: Sequence[int], scale: float) -> dict:
    student, calm, original = (_scaled(cosines(rows, texts), scale) for rows in (adv, clean, teacher_adv))
    rows = zip(student, _one_hot(labels, len(texts)), strict=True)
    squared = [sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) for x, y in zip(adv, teacher_adv, strict=True)]
    return {
        "ce": mean([soft_cross_entropy(row, target) for row, target in rows]),
        "general": mean([kl(t, z) for t, z in zip(original, student, strict=True)]),
        "clean": mean([kl(t, z) for t, z in zip(calm, student, strict=True)]),
        "general_reversed": mean([kl(z, t) for t, z in zip(original, student, strict=True)]),
        "clean_reversed": mean([kl(z, t) for t, z in zip(calm, student, strict=True)]),
        "feature": mean(squared),
    }


def agft_target(teacher_clean: Rows, texts: Rows, scale: float, calibration: float) -> Rows:
    return [softmax(row) for row in _scaled(cosines(teacher_clean, texts), calibration * scale)]


def agft(adv: Rows, teacher_clean: Rows, texts: Rows, scale: float, calibration: float) -> float:
    student = _scaled(cosines(adv, texts), scale)
    target = agft_target(teacher_clean, texts, scale, calibration)
    return mean([soft_cross_entropy(row, shares) for row, shares in zip(student, target, strict=True)])


def _exact_cosine(left: Row, right: Row) -> mpf:
    x, y = [mpf(v) for v in left], [mpf(v) for v in right]
    lengths = mpsqrt(sum(v * v for v in x)) * mpsqrt(sum(v * v for v in y))
    return sum(p * q for p, q in zip(x, y, strict=True)) / lengths


def ucat(
    adv: Rows, teacher_clean: Rows, texts: Rows, labels: Sequence[int], scale: float, temperature: float, offset: float
) -> dict:
    """Return the terms exactly: "ce", "kl", the mean of the divergence, and "evidence", that of b0 KL(b/b0 || a/a0)."""
    with mp.workdps(dirichlet.DIGITS):
        t = mpf(temperature)
        student = [[_exact_cosine(row, text) for text in texts] for row in adv]
        original = [[_exact_cosine(row, text) for text in texts] for row in teacher_clean]
        ce = sum(
            mplog(sum(exp(scale * (c - row[label])) for c in row)) for row, label in zip(student, labels, strict=True)
        )
        a = [[exp((c + 1) / t) + mpf(offset) for c in row] for row in student]
        b = [[exp((c + 1) / t) + mpf(offset) for c in row] for row in original]
        divergence = sum(dirichlet.kl(x, y) for x, y in zip(a, b, strict=True))
        evidence = mpf(0)
        for x, y in zip(a, b, strict=True):
            evidence += sum(q * mplog(q / sum(y) / (p / sum(x))) for p, q in zip(x, y, strict=True))
        return {"ce": ce / len(adv), "kl": divergence / len(adv), "evidence": evidence / len(adv)}
