"""APGD on one image, written down as the evaluation plan has it (2.4): no batch, no state, float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def checkpoints(steps: int) -> list[int]:
    """Return the steps after which the step size is reviewed, by the paper's fractions."""
    fractions = [0.0, 0.22]
    while fractions[-1] < 1:
        fractions.append(fractions[-1] + max(fractions[-1] - fractions[-2] - 0.03, 0.06))
    return [math.ceil(round(fraction * steps, 9)) for fraction in fractions[1:] if fraction <= 1]


def walk(
    value: Callable[[Tensor], Tensor],
    origin: Tensor,
    start: Tensor,
    eps: float,
    norm: str,
    *,
    steps: int,
    windows: list[int],
) -> tuple[list[Tensor], list[float]]:
    """Return all points that APGD examines from `start`, and the step size of each step.

    Args:
        value: What is maximised, a scalar of one image `[3, H, W]`.
        origin: The clean image.
        start: The first point.
        eps: Radius.
        norm: "linf" or "l2".
        steps: N.
        windows: Lengths of the windows between reviews, in order.
    """

    def look(x: Tensor) -> tuple[float, Tensor]:
        leaf = x.clone().requires_grad_(True)
        found = value(leaf)
        return found.item(), torch.autograd.grad(found, leaf)[0]

    def inside(x: Tensor) -> Tensor:
        delta = x - origin
        delta = delta.clamp(-eps, eps) if norm == "linf" else delta * min(1.0, eps / (delta.norm().item() + 1e-12))
        return (origin + delta).clamp(0, 1)

    def along(slope: Tensor) -> Tensor:
        return slope.sign() if norm == "linf" else slope / slope.norm()

    eta, x, before = 2 * eps, start, start
    f, g = look(x)
    top, top_f, top_g, top_f_then = x, f, g, f
    points, etas, windows = [x], [], list(windows)
    reduced, since, ups = True, 0, 0
    for i in range(steps):
        a = 1.0 if i == 0 else 0.75
        u = inside(x + eta * along(g))
        following = inside(x + a * (u - x) + (1 - a) * (x - before))
        before, x = x, following
        points.append(x)
        etas.append(eta)
        f_then = f
        f, g = look(x)
        if f > top_f:
            top, top_f, top_g = x, f, g
        since, ups = since + 1, ups + (f > f_then)
        if windows and since == windows[0]:
            if ups <= 0.75 * since or (not reduced and top_f == top_f_then):
                eta, x, g, reduced = eta / 2, top, top_g, True
            else:
                reduced = False
            top_f_then, since, ups = top_f, 0, 0
            windows.pop(0)
    return points, etas
