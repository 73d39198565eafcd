"""A learned frame of pixels around every image: one half of TeCoA's visual prompts.

Source: Bahng et al., 2022, arXiv:2203.17274 (padding), as the published code of TeCoA, Mao et al., ICLR 2023,
arXiv:2212.07016, uses it: added after normalisation, at the model's own resolution. The other half, tokens beside the
patches, are `FreePrompts.image` of `models.prompts`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ironclip.errors import ConfigError
from ironclip.randomness import SampleRandom

PUBLISHED_WIDTH = 30 / 224
"""Width of the published frame as a share of the image's side."""


class PixelFrame(nn.Module):
    """Four strips that are added to the border of normalised images.

    Args:
        top: `[3, w, R]`, like `bottom`.
        bottom: `[3, w, R]`.
        left: `[3, R - 2 w, w]`, like `right`.
        right: `[3, R - 2 w, w]`.
    """

    def __init__(self, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> None:
        super().__init__()
        self.top, self.bottom = nn.Parameter(top), nn.Parameter(bottom)
        self.left, self.right = nn.Parameter(left), nn.Parameter(right)

    @classmethod
    def drawn(cls, resolution: int, width: int, seed: int) -> PixelFrame:
        """Draw the strips from N(0, 1), a function of the seed.

        Raises:
            ConfigError: The frame has no width, or leaves nothing of the image.
        """
        if not 0 < 2 * width < resolution:
            raise ConfigError(
                f"a frame of {width} pixels around images of {resolution}.",
                f"Give a width from 1 to {(resolution - 1) // 2}.",
            )
        random = SampleRandom(seed, ["pixel frame"])
        long, short = (3, width, resolution), (3, resolution - 2 * width, width)
        shapes = {"top": long, "bottom": long, "left": short, "right": short}
        return cls(**{side: random.normal(shape, side)[0] for side, shape in shapes.items()})

    def forward(self, normalised: Tensor) -> Tensor:
        """Add the frame to `[B, 3, R, R]`, in the precision of the images."""
        hole = self.left.shape[1]
        middle = torch.cat([self.left, self.left.new_zeros(3, hole, hole), self.right], dim=2)
        frame = torch.cat([self.top, middle, self.bottom], dim=1)
        return normalised + frame.to(normalised.dtype)
