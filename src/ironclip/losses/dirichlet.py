"""Divergence of two Dirichlet distributions, exact from concentrations of 1e-3 to 1e13 and between nearly equal ones.

With G the Bregman divergence of ln Gamma, G(x, y) = ln Gamma(y) - ln Gamma(x) - (y - x) psi(x), and totals a0, b0,

    KL(Dir(a) || Dir(b)) = sum_k G(a_k, b_k) - G(a0, b0).

The textbook form subtracts values of ln Gamma that can be 1e14 times the result. Here G is split into the part of
x ln x - x, whose sum has the closed form b0 KL(b / b0 || a / a0), and a rest of order 1; neither is computed by
subtracting what is much larger than itself. All is float64. Derivation ours; the KL: UCAT, arXiv:2512.12997.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SHIFT = 10
"""Stirling's series serves from here on (error below 1e-14); smaller arguments are shifted past it."""

_STIRLING = {1: 1 / 12, 3: -1 / 360, 5: 1 / 1260, 7: -1 / 1680, 9: 1 / 1188}
"""ln Gamma(x) = (x - 1/2) ln x - x + ln(2 pi)/2 + sum of c / x^m, m to c."""


def concentration(similarity: Tensor, temperature: float) -> Tensor:
    """Read cosines as evidence: exp((cos + 1) / temperature), float64 `[B, C]`, at least 1.

    Its shares are softmax(cos / temperature). Source: UCAT, arXiv:2512.12997.
    """
    return ((similarity.double() + 1) / temperature).exp()


def dirichlet_kl(concentration: Tensor, reference: Tensor) -> Tensor:
    """KL(Dir(concentration) || Dir(reference)) a row, differentiable in both: `[B, C]`, `[B, C]` to float64 `[B]`."""
    return evidence_kl(concentration, reference) + beyond_evidence(concentration, reference)


def evidence_kl(concentration: Tensor, reference: Tensor) -> Tensor:
    """Return the part of `dirichlet_kl` that rules where concentrations are large: b0 KL(b / b0 || a / a0), `[B]`.

    A distillation of class shares, from the reference to the other, that weighs each row by the reference's evidence.
    """
    a, b = concentration.double(), reference.double()
    # Scaled to the same total, the terms are a Bregman divergence, hence none is negative.
    scaled = a * (b.sum(dim=-1) / a.sum(dim=-1))[..., None]
    return (b * _log_bregman(b, scaled)).sum(dim=-1)


def beyond_evidence(concentration: Tensor, reference: Tensor) -> Tensor:
    """Return the rest of `dirichlet_kl`, `[B]`: of order C, and all of it where only the totals differ."""
    a, b = concentration.double(), reference.double()
    return _rest(a, b).sum(dim=-1) - _rest(a.sum(dim=-1), b.sum(dim=-1))


def _rest(x: Tensor, y: Tensor) -> Tensor:
    """Bregman divergence of ln Gamma(x) - (x ln x - x)."""
    small = torch.minimum(x, y) < _SHIFT
    high_x, high_y = torch.where(small, x + _SHIFT, x), torch.where(small, y + _SHIFT, y)
    rest = _log_bregman(high_x, high_y) / 2 + _series_bregman(high_x, high_y)
    if small.any():
        # ln Gamma(x) = ln Gamma(x + n) - sum of ln(x + i); where nothing was shifted, 1 stands in.
        low_x, low_y = torch.where(small, x, 1.0), torch.where(small, y, 1.0)
        logs = torch.stack([_log_bregman(low_x + i, low_y + i) for i in range(_SHIFT)]).sum(dim=0)
        rest = rest + torch.where(small, logs + _shifted(low_x, low_y), 0.0)
    return rest


def _shifted(x: Tensor, y: Tensor) -> Tensor:
    """Bregman divergence of x ln x - x between shifted arguments, less that between the arguments themselves."""
    high_x, high_y = x + _SHIFT, y + _SHIFT
    near = _near(x, y)
    apart_x, apart_y = torch.where(near, 1.0, x), torch.where(near, 1.0, y)
    apart = (apart_y + _SHIFT) * ((apart_y + _SHIFT) / (apart_x + _SHIFT)).log() - apart_y * (apart_y / apart_x).log()
    return torch.where(near, high_y * _log_bregman(high_y, high_x) - y * _log_bregman(y, x), apart)


def _near(x: Tensor, y: Tensor) -> Tensor:
    return (y - x).abs() < 0.3 * x


def _log_bregman(x: Tensor, y: Tensor) -> Tensor:
    """Bregman divergence of -ln, y / x - 1 - ln(y / x): never negative, and exact near y = x."""
    near = _near(x, y)
    w = torch.where(near, (y - x) / x, 0.0)
    # ln(1 + w) = 2 (z + z^3 / 3 + z^5 / 5 + ...), and w - 2 z = w z.
    z = w / (2 + w)
    odd = torch.zeros_like(z)
    for power in range(23, 1, -2):
        odd = 1 / power + z.square() * odd
    ratio = torch.where(near, 1.0, y / x)
    return torch.where(near, w * z - 2 * z**3 * odd, ratio - 1 - ratio.log())


def _series_bregman(x: Tensor, y: Tensor) -> Tensor:
    """Bregman divergence of Stirling's series."""
    # That of x^-m is u (y / x - 1)^2 x^-m sum_(i < m) (m - i) u^i.
    u = x / y
    total = torch.zeros_like(x)
    for power, factor in _STIRLING.items():
        inner = torch.zeros_like(x)
        for i in reversed(range(power)):
            inner = (power - i) + u * inner
        total = total + factor * inner / x**power
    return total * u * ((y - x) / x).square()
