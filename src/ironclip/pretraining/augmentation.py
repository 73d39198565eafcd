"""Random views of training images, a function of (seed, sample key, epoch): crops, flips, colour, mixing, patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ironclip.randomness import SampleRandom

# Draws of a sample for its view: zoom, aspect, place (2), flip, brightness, contrast, saturation, mixing (4).
_DRAWS = 12


@dataclass(frozen=True)
class View:
    """How much a source's images may be changed.

    Attributes:
        zoom: Smallest side of a crop as a share of the image's; 1 leaves images whole.
        flip: Mirror half of them.
        colour: Largest relative change of brightness, contrast and saturation.
    """

    zoom: float
    flip: bool
    colour: float


@dataclass(frozen=True)
class Draws:
    """The numbers in [0, 1) that decide what becomes of each sample, `[B, 12]`."""

    numbers: Tensor

    @classmethod
    def of(cls, keys: Sequence[str], epochs: Sequence[int], seed: int) -> Draws:
        """Draw for samples, each in an epoch of its own."""
        named = [f"{key}|{epoch}" for key, epoch in zip(keys, epochs, strict=True)]
        return cls(SampleRandom(seed, named, "pretrain").uniform((_DRAWS,), 0, 1, "view"))


def change_view(pixels: Tensor, draws: Draws, view: View) -> Tensor:
    """Crop, mirror and colour images `[B, 3, R, R]` in [0, 1]; the result lies in [0, 1]."""
    size, aspect, x, y, mirrored, brightness, contrast, saturation = draws.numbers[:, :8].to(pixels.device).unbind(1)
    side = view.zoom + (1 - view.zoom) * size
    stretch = torch.exp((aspect - 0.5) * 0.5 * (1 - view.zoom))  # up to a ratio of about 5 : 4 each way
    width, height = (side * stretch).clamp(max=1), (side / stretch).clamp(max=1)
    sign = torch.where(mirrored < 0.5, -1.0, 1.0) if view.flip else torch.ones_like(mirrored)
    affine = pixels.new_zeros(len(pixels), 2, 3)
    affine[:, 0, 0], affine[:, 1, 1] = width * sign, height
    affine[:, 0, 2], affine[:, 1, 2] = (1 - width) * (2 * x - 1), (1 - height) * (2 * y - 1)
    grid = F.affine_grid(affine, list(pixels.shape), align_corners=False)
    seen = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)

    def factor(draw: Tensor) -> Tensor:
        return (1 + view.colour * (2 * draw - 1)).view(-1, 1, 1, 1)

    seen = seen * factor(brightness)
    mean = seen.mean(dim=(1, 2, 3), keepdim=True)
    seen = mean + (seen - mean) * factor(contrast)
    grey = seen.mean(dim=1, keepdim=True)
    return (grey + (seen - grey) * factor(saturation)).clamp(0, 1)


def mix_images(pixels: Tensor, draws: Draws, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Paste a box of another sample of the same source into a share of the images (CutMix, Yun et al., ICCV 2019).

    Args:
        pixels: `[B, 3, R, R]` of one source.
        draws: Of these samples.
        share: Of samples that are mixed, 0 to 1.

    Returns:
        The images, the partner of each `[B]` (the next sample), and the weight `[B]` of its own label.
    """
    chosen, area, x, y = draws.numbers[:, 8:].to(pixels.device).unbind(1)
    count, side = len(pixels), pixels.shape[-1]
    partner = torch.arange(count, device=pixels.device).roll(-1)
    # A box of area 1 - weight, at most half of the image, so that a sample's own label stays the larger one.
    edge = (torch.sqrt(0.5 * area) * side).round() * (chosen < share)
    left, top = (x * (side - edge)).floor(), (y * (side - edge)).floor()
    place = torch.arange(side, device=pixels.device)
    across = (place >= left[:, None]) & (place < (left + edge)[:, None])
    down = (place >= top[:, None]) & (place < (top + edge)[:, None])
    box = (down[:, :, None] & across[:, None, :])[:, None]
    return torch.where(box, pixels[partner], pixels), partner, 1 - (edge / side) ** 2


def kept_patches(keys: Sequence[str], epochs: Sequence[int], seed: int, patches: int, kept: int) -> Tensor:
    """Choose the patches that a sample shows, `[B, kept]` in ascending order."""
    named = [f"{key}|{epoch}" for key, epoch in zip(keys, epochs, strict=True)]
    order = SampleRandom(seed, named, "pretrain").uniform((patches,), 0, 1, "patches").argsort(dim=1)
    return order[:, :kept].sort(dim=1).values
