"""Classifiers of which everything is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ironclip.models.zero_shot import Classifier


class Affine(Classifier):
    """`z = W x + b` over the flattened pixels, in float32 or float64; rows do not know of each other.

    Args:
        weight: `[C, 3 H W]`.
        bias: `[C]`.
        tie_tolerance: Margins below it are settled in float64.
    """

    def __init__(self, weight: Tensor, bias: Tensor, *, tie_tolerance: float = 0.0) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.float()), nn.Parameter(bias.float())
        self.tolerance, self.dtype = tie_tolerance, torch.float32

    @property
    def device(self) -> torch.device:
        return self.weight.device

    @property
    def precisions(self) -> frozenset[torch.dtype]:
        return frozenset({torch.float32, torch.float64})

    @property
    def tie_tolerance(self) -> float:
        return self.tolerance

    @contextmanager
    def computing(self, dtype: torch.dtype) -> Iterator[None]:
        before, self.dtype = self.dtype, dtype
        try:
            yield
        finally:
            self.dtype = before

    def logits(self, pixels: Tensor) -> Tensor:
        wide = torch.promote_types(pixels.dtype, self.dtype)
        return pixels.flatten(1).to(wide) @ self.weight.to(wide).T + self.bias.to(wide)


class Free(Classifier):
    """Any function of pixels, float32 only."""

    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.call = call

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def tie_tolerance(self) -> float:
        return 0.0

    def logits(self, pixels: Tensor) -> Tensor:
        return self.call(pixels)


class AffineTask:
    """An affine classifier with samples, on a grid of powers of two on which float32 makes no rounding error.

    Weights are multiples of 1/16 up to 1/2, pixels of 1/256; radii of k/256 keep every sum exact.

    Args:
        classes: C.
        seed: Of weights, bias and pixels.
        samples: N; labels are what the classifier says, and for each tenth sample something else.
        side: H and W.
        inner: Pixels lie in [1/4, 3/4] and not in [0, 1], so that small balls do not meet the box.
    """

    def __init__(self, classes: int, seed: int, *, samples: int = 40, side: int = 4, inner: bool = False) -> None:
        random = torch.Generator().manual_seed(seed)
        shape = (3, side, side)
        self.weight = torch.randint(-8, 9, (classes, 3 * side * side), generator=random) / 16
        low, high = (64, 193) if inner else (0, 257)
        self.pixels = torch.randint(low, high, (samples, *shape), generator=random) / 256
        logits = self.pixels.flatten(1) @ self.weight.T
        # Balanced: each class wins somewhere.
        self.bias = -(logits.mean(dim=0) * 256).round() / 256
        self.labels = (logits + self.bias).argmax(dim=1)
        self.labels[::10] = (self.labels[::10] + 1) % classes
        self.keys = [f"sample {index}" for index in range(samples)]
        self.classifier = Affine(self.weight, self.bias)
