"""A smooth model whose every gradient is honest, and the ways in which one can hide them (evaluation plan 3.2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ironclip.models.randomised import RandomisedClassifier
from ironclip.models.zero_shot import PythonClassifier
from ironclip.randomness import SampleRandom
from made_up_images import natural_like

SIDE, CLASSES, SAMPLES = 16, 4, 32


class Smooth(nn.Module):
    """Two layers of random weights; a class is what the embedding of its first image is like, beside the mean."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.filters = nn.Parameter(torch.randn(12, 3, 4, 4, generator=random) / 7)
        self.mixing = nn.Parameter(torch.randn(24, 12 * 8 * 8, generator=random) / 28)
        with torch.no_grad():
            middle = self.embed(natural_like(64, SIDE, seed=5)).mean(dim=0)
            prototypes = self.embed(natural_like(CLASSES, SIDE, seed=4)) - middle
        self.middle, self.prototypes = nn.Parameter(middle), nn.Parameter(F.normalize(prototypes, dim=1))

    def embed(self, pixels: Tensor) -> Tensor:
        maps = F.gelu(F.conv2d(pixels - 0.5, self.filters, stride=2, padding=1))
        return F.linear(maps.flatten(1), self.mixing)

    def forward(self, pixels: Tensor) -> Tensor:
        return 30 * F.linear(self.embed(pixels) - self.middle, self.prototypes)


def quantised(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Round pixels to sixteen levels: the gradient is 0."""
    return lambda pixels: model((16 * pixels).floor() / 16)


def saturated(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Scale the logits until the cross-entropy has no gradient."""
    return lambda pixels: 1e4 * model(pixels)


def probabilities(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return what a softmax makes of saturated logits."""
    return lambda pixels: (1e4 * model(pixels)).softmax(dim=1)


def codec(pixels: Tensor) -> Tensor:
    """Leave the graph on the way to 8-bit levels."""
    return torch.from_numpy((255 * pixels.detach().numpy()).round().astype("uint8")).float() / 255


def decoded(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Answer behind a codec."""
    return lambda pixels: model(codec(pixels))


class Jittered(RandomisedClassifier):
    """Add noise, shrink by a random amount, and pad with zeros at random."""

    def __init__(self, model: nn.Module, noise: float = 0.1) -> None:
        super().__init__()
        self.model, self.noise = model, noise

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def drawn_logits(self, pixels: Tensor, random: SampleRandom) -> Tensor:
        draws = random.uniform((3,), 0, 1, "place")
        noisy = pixels + self.noise * random.normal(pixels.shape[1:], "noise")
        pairs = zip(noisy, draws.tolist(), strict=True)
        return self.model(torch.cat([self._placed(image, *draw) for image, draw in pairs]))

    @staticmethod
    def _placed(image: Tensor, size: float, across: float, down: float) -> Tensor:
        side = SIDE - int(size * 4)
        small = F.interpolate(image[None], (side, side), mode="bilinear", align_corners=False)
        left, top = int(across * (SIDE - side + 1)), int(down * (SIDE - side + 1))
        return F.pad(small, (left, SIDE - side - left, top, SIDE - side - top))


def detached(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Give gradients that are none of the model's."""
    weight = torch.randn(CLASSES, 3 * SIDE * SIDE, generator=torch.Generator().manual_seed(9))
    return lambda pixels: model(pixels.detach()) + 1e-3 * F.linear(pixels.flatten(1), weight)


def dropping(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Leave dropout on."""
    return lambda pixels: model(F.dropout(pixels, 0.2, training=True))


def batch_normed(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Let an answer depend on its neighbours."""

    def call(pixels: Tensor) -> Tensor:
        logits: Tensor = model(pixels)
        return logits - 2 * logits.mean(dim=0, keepdim=True)

    return call


class Learning(nn.Module):
    """A defence that steps along a gradient of its own before it answers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        with torch.enable_grad():
            delta = torch.zeros_like(pixels, requires_grad=True)
            (gradient,) = torch.autograd.grad(self.model(pixels + delta).square().sum(), delta)
        answer: Tensor = self.model(pixels + 1e-4 * gradient.sign())
        return answer


def classifier(call: Callable[[Tensor], Tensor]) -> PythonClassifier:
    return PythonClassifier(call, torch.device("cpu"))
