"""Images that were never taken, with the statistics of photographs."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def natural_like(count: int, height: int, width: int | None = None, *, seed: int = 0) -> Tensor:
    """Make images whose amplitude falls as 1/frequency, float32 `[count, 3, height, width]` that fills [0, 1]."""
    width = width or height
    noise = torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))
    squares = torch.fft.fftfreq(height).square()[:, None] + torch.fft.fftfreq(width).square()[None, :]
    images = torch.fft.ifft2(torch.fft.fft2(noise) / squares.sqrt().clamp(min=1 / max(height, width))).real
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (images - low) / (high - low)


def to_pil(pixels: Tensor) -> Image.Image:
    """Round one image `[3, H, W]` to 8 bits."""
    return Image.fromarray((pixels * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def from_pil(image: Image.Image) -> Tensor:
    """Read one image as float64 `[3, H, W]` in [0, 1]."""
    return torch.from_numpy(np.asarray(image, dtype=np.float64) / 255).permute(2, 0, 1)
