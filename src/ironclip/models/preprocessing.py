"""From pixels in [0, 1] at any resolution to what a tower reads: resize, crop, normalise; all differentiable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from ironclip.errors import ConfigError, ShapeError, ValueRangeError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocessing:
    """How a model's pixels are prepared; part of the threat model, since the adversary acts before it.

    Attributes:
        resolution: Side of the square that the tower reads, in pixels.
        mean: Subtracted a channel, in units of [0, 1].
        std: Divided by a channel.
        kernel: Resampling kernel, "bicubic" or "bilinear".
        resize_mode: "shortest" (resize the shorter side, crop the centre) or "squash" (ignore the aspect ratio).
    """

    resolution: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    kernel: str = "bicubic"
    resize_mode: str = "shortest"

    @classmethod
    def from_open_clip(cls, config: Mapping[str, Any], resolution: int) -> Preprocessing:
        """Read open_clip's `preprocess_cfg`.

        Raises:
            ConfigError: A kernel or resize mode that is not served here.
        """
        kernel, mode = config.get("interpolation", "bicubic"), config.get("resize_mode", "shortest")
        if kernel not in ("bicubic", "bilinear") or mode not in ("shortest", "squash"):
            raise ConfigError(
                f'the model asks for interpolation "{kernel}" and resize mode "{mode}".',
                "IronCLIP serves bicubic or bilinear, and shortest or squash; change the model's preprocess_cfg.",
            )
        mean, std = config.get("mean") or CLIP_MEAN, config.get("std") or CLIP_STD
        return cls(resolution, tuple(map(float, mean)), tuple(map(float, std)), kernel, mode)

    def record(self) -> dict[str, Any]:
        """Return what a threat model's record says of this: kernel, antialiasing and backend included."""
        return asdict(self) | {"antialias": True, "backend": "torch"}

    def resize(self, pixels: Tensor) -> Tensor:
        """Bring `[B, 3, H, W]` to `[B, 3, resolution, resolution]`; the identity where it is so already.

        Bicubic with antialiasing, which is PIL's kernel up to PIL's rounding to 8 bits. Overshoot of the kernel is cut
        off at 0 and 1, as PIL's 8 bits do.
        """
        side, (height, width) = self.resolution, pixels.shape[-2:]
        if (height, width) == (side, side):
            return pixels
        if self.resize_mode == "squash":
            new = (side, side)
        else:
            # In integers: a rounded scale would make 63 of 32 * 98 / 49, and PIL's path 64.
            shorter = min(height, width)
            new = (side * height // shorter, side * width // shorter)
        resized = F.interpolate(pixels, size=new, mode=self.kernel, align_corners=False, antialias=True).clamp(0, 1)
        cropped: Tensor = tv.center_crop(resized, [side, side])
        return cropped

    def normalise(self, pixels: Tensor) -> Tensor:
        """Subtract the mean, divide by the deviation; `[B, 3, H, W]`."""
        mean = torch.tensor(self.mean, dtype=pixels.dtype, device=pixels.device).view(3, 1, 1)
        std = torch.tensor(self.std, dtype=pixels.dtype, device=pixels.device).view(3, 1, 1)
        return (pixels - mean) / std

    def from_pil(self, image: Image.Image) -> Tensor:
        """Turn a PIL image into float32 pixels `[3, R, R]` in [0, 1], R the resolution; resized in 8 bits as CLIP."""
        kernel = tv.InterpolationMode(self.kernel)
        rgb = image.convert("RGB")
        if self.resize_mode == "squash":
            rgb = tv.resize(rgb, [self.resolution, self.resolution], interpolation=kernel)
        else:
            rgb = tv.center_crop(
                tv.resize(rgb, [self.resolution], interpolation=kernel), [self.resolution, self.resolution]
            )
        pixels: Tensor = tv.to_dtype(tv.pil_to_tensor(rgb), torch.float32, scale=True)
        return pixels


def check_pixels(pixels: Tensor, *, slack: float = 0.0) -> None:
    """Refuse what is not a batch of images in [0, 1].

    Args:
        pixels: What was given.
        slack: How far a pixel may leave [0, 1].

    Raises:
        ShapeError: Not `[B, 3, H, W]`.
        ValueRangeError: Not floating point, not finite, or outside [0, 1] (normalised, or 0..255); names what was seen.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ShapeError(
            f"pixels have shape {tuple(pixels.shape)}, expected [B, 3, H, W].", "Stack RGB images, channels first."
        )
    if not pixels.is_floating_point():
        raise ValueRangeError(
            f"pixels are {pixels.dtype}, expected float32 in [0, 1].", "For 8-bit images use pixels.float() / 255."
        )
    if pixels.numel():
        low, high = (bound.item() for bound in torch.aminmax(pixels.detach()))
        if not (low >= -slack and high <= 1 + slack):
            raise ValueRangeError(
                f"pixels range from {low:.4g} to {high:.4g}, expected numbers in [0, 1].",
                "Give images before mean and std are applied (the model normalises inside); divide 0..255 by 255.",
            )
