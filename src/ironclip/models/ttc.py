"""TTC, test-time counterattack: a defence that moves each image away from itself before it is classified.

An adversarial image sits on a false plateau: small noise hardly moves its embedding. Where that is so, a short ascent
of the embedding's distance from itself leads off it; elsewhere the noise alone is added.

Source: Xing et al., CVPR 2025, arXiv:2503.03613; constants from the authors' code. Deviation: the noise is a function
of the image and not of a global seed, so that the same image gets the same answer, alone or in any batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ironclip.errors import ConfigError
from ironclip.models.zero_shot import Classifier, FixedClasses
from ironclip.randomness import SampleRandom


class Counterattacked(Classifier):
    """A zero-shot classifier behind TTC, which is attacked like any classifier: the defence is part of the model.

    Attack the classifier inside and judge this one by what came out (`attacks.transfer`), and you have the static
    evaluation that the paper reports, level L0 of the evaluation plan, 2.13. Attack this one, and every point is
    examined behind the defence, with the exact gradient through it: the counterattack steps along signs, whose own
    slope is zero, so what is left is the identity where nothing is clipped. That is level L2, and BPDA gives no other.

    Args:
        inner: The undefended classifier.
        radius: Of the counterattack in linf, in pixel units.
        step_size: Of the counterattack, in pixel units.
        steps: Of the counterattack.
        threshold: Relative shift of the embedding under noise from which on an image is left with the noise alone.
        growth: By how much the logarithm of a step's weight grows with each step (beta in the paper).

    Raises:
        ConfigError: No steps, or a length that is not positive.
    """

    def __init__(
        self,
        inner: FixedClasses,
        *,
        radius: float = 4 / 255,
        step_size: float = 1 / 255,
        steps: int = 2,
        threshold: float = 0.2,
        growth: float = 2.0,
    ) -> None:
        super().__init__()
        if steps < 1 or radius <= 0 or step_size <= 0:
            raise ConfigError(
                f"TTC with {steps} steps of {step_size:g} in a radius of {radius:g}.", "Give positive numbers."
            )
        self.inner = inner
        self.radius, self.step_size, self.steps = radius, step_size, steps
        self.threshold, self.growth = threshold, growth

    @property
    def device(self) -> torch.device:
        """Where pixels have to lie."""
        return self.inner.device

    @property
    def precisions(self) -> frozenset[torch.dtype]:
        """Those of the classifier inside."""
        return self.inner.precisions

    @property
    def tie_tolerance(self) -> float:
        """That of the classifier inside."""
        return self.inner.tie_tolerance

    @contextmanager
    def computing(self, dtype: torch.dtype) -> Iterator[None]:
        """Let the classifier inside compute in another precision."""
        with self.inner.computing(dtype):
            yield

    def logits(self, pixels: Tensor) -> Tensor:
        """Score the images after the counterattack, `[B, C]`."""
        return self.inner.logits(self.defended(pixels))

    def defended(self, pixels: Tensor) -> Tensor:
        """Return the images that the classifier inside sees, `[B, 3, H, W]` in [0, 1]."""
        clean, embed = pixels.detach(), self.inner.model.embed_image
        point = (clean + self._noise(clean)).clamp(0, 1)
        with torch.no_grad():
            home = embed(clean)
            shift = torch.linalg.vector_norm(embed(point) - home, dim=1) / torch.linalg.vector_norm(home, dim=1)
        deltas = [point - clean]
        for _ in range(self.steps):
            ascent = self._ascent(clean + deltas[-1], home).sign()
            moved = (deltas[-1] + self.step_size * ascent).clamp(-self.radius, self.radius)
            deltas.append((clean + moved).clamp(0, 1) - clean)
        weights = (self.growth * torch.arange(self.steps + 1, device=pixels.device, dtype=pixels.dtype)).softmax(dim=0)
        counter = torch.stack([weight * delta for weight, delta in zip(weights, deltas, strict=True)]).sum(dim=0)
        stable = (shift < self.threshold).view(-1, 1, 1, 1)
        return (pixels + torch.where(stable, counter, deltas[0])).clamp(0, 1)

    def _ascent(self, points: Tensor, home: Tensor) -> Tensor:
        """Return the gradient of the squared distance of the points' embeddings from `home`."""
        with torch.enable_grad():
            leaf = points.detach().requires_grad_(True)
            distance = (self.inner.model.embed_image(leaf) - home).square().sum()
            (gradient,) = torch.autograd.grad(distance, leaf)
        return gradient

    def _noise(self, pixels: Tensor) -> Tensor:
        """Draw noise in the ball for each image, from a stream that its own 8-bit levels name."""
        levels = (255 * pixels).round().clamp(0, 255).to(torch.uint8).cpu()
        keys = [image.numpy().tobytes().hex() for image in levels]
        noise = SampleRandom(0, keys, "ttc").uniform(pixels.shape[1:], -self.radius, self.radius, "noise")
        return noise.to(pixels)
