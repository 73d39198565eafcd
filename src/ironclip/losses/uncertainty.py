"""How unsure a Dirichlet distribution over class shares is, and of what: nats, float64, a row each.

Concentrations are positive, `[B, C]`, results `[B]`. The total entropy is that of the mean shares; it splits into the
aleatoric part, which stays when the shares are known, and the epistemic part, the information that they would bring.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LARGE = 20
"""From here on psi(x + 1) - ln x comes from its series (error below 1e-15); the difference itself would cancel."""


def total_entropy(concentration: Tensor) -> Tensor:
    """Entropy of the mean shares, in [0, ln C]."""
    shares = _shares(concentration)
    return -(shares * shares.log()).sum(dim=-1)


def expected_entropy(concentration: Tensor) -> Tensor:
    """Return the aleatoric part: the mean entropy of shares drawn from the distribution; divide by ln C for [0, 1].

    Source: AU of UCAT, arXiv:2512.12997: sum_k a_k / a0 (psi(a0 + 1) - psi(a_k + 1)).
    """
    a = concentration.double()
    total = a.sum(dim=-1, keepdim=True)
    return (_shares(a) * (torch.digamma(total + 1) - torch.digamma(a + 1))).sum(dim=-1)


def mutual_information(concentration: Tensor) -> Tensor:
    """Return the epistemic part, total entropy less expected entropy; about (C - 1) / 2 a0 where a0 is large."""
    a = concentration.double()
    return (_shares(a) * _digamma_beyond_log(a)).sum(dim=-1) - _digamma_beyond_log(a.sum(dim=-1))


def vacuity(concentration: Tensor) -> Tensor:
    """Return C / a0, the share of evidence that is missing where every class has at least 1."""
    return concentration.shape[-1] / concentration.double().sum(dim=-1)


def ucat_eu(concentration: Tensor) -> Tensor:
    """Return C / (a0 + C), in (0, 1). Source: EU of UCAT; its published code computes something else."""
    classes = concentration.shape[-1]
    return classes / (concentration.double().sum(dim=-1) + classes)


def _shares(concentration: Tensor) -> Tensor:
    a = concentration.double()
    return a / a.sum(dim=-1, keepdim=True)


def _digamma_beyond_log(x: Tensor) -> Tensor:
    """psi(x + 1) - ln x."""
    large = x >= _LARGE
    small, inverse = torch.where(large, 1.0, x), torch.where(large, x, _LARGE).reciprocal()
    square = inverse.square()
    series = inverse / 2 - square * (
        1 / 12 - square * (1 / 120 - square * (1 / 252 - square * (1 / 240 - square / 132)))
    )
    return torch.where(large, series, torch.digamma(small + 1) - small.log())
