"""Dirichlet distributions by their definitions, in mpmath with 60 digits, a row at a time."""

from __future__ import annotations

from collections.abc import Sequence

from mpmath import digamma, log, loggamma, mp, mpf, psi

Row = Sequence[float]

DIGITS = 60


def kl(a: Row, b: Row) -> mpf:
    """ln of the ratio of the densities, in the mean over the first."""
    with mp.workdps(DIGITS):
        x, y = [mpf(v) for v in a], [mpf(v) for v in b]
        logs = loggamma(sum(x)) - sum(map(loggamma, x)) - loggamma(sum(y)) + sum(map(loggamma, y))
        return logs + sum((p - q) * (digamma(p) - digamma(sum(x))) for p, q in zip(x, y, strict=True))


def kl_gradients(a: Row, b: Row) -> tuple[list[mpf], list[mpf]]:
    """By the first and by the second argument."""
    with mp.workdps(DIGITS):
        x, y = [mpf(v) for v in a], [mpf(v) for v in b]
        first = [(p - q) * psi(1, p) - (sum(x) - sum(y)) * psi(1, sum(x)) for p, q in zip(x, y, strict=True)]
        second = [digamma(q) - digamma(sum(y)) - digamma(p) + digamma(sum(x)) for p, q in zip(x, y, strict=True)]
        return first, second


def total_entropy(a: Row) -> mpf:
    with mp.workdps(DIGITS):
        x = [mpf(v) for v in a]
        return -sum(v / sum(x) * log(v / sum(x)) for v in x)


def expected_entropy(a: Row) -> mpf:
    with mp.workdps(DIGITS):
        x = [mpf(v) for v in a]
        return -sum(v / sum(x) * (digamma(v + 1) - digamma(sum(x) + 1)) for v in x)


def mutual_information(a: Row) -> mpf:
    with mp.workdps(DIGITS):
        return total_entropy(a) - expected_entropy(a)
