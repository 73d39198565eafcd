"""Encoded images to pixels: float32 `[3, H, W]` in [0, 1], resized while they are still 8-bit.

Resizing happens in Pillow (bicubic, antialiased) before pixels become float, so that every pixel of the result is a
multiple of 1/255 and eps means what it says. As in open_clip and torchvision, alpha is dropped, the first frame of an
animation is taken, and EXIF orientation is ignored.
"""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ironclip.errors import DataError

# Suffix to Pillow's format. A closed list: Pillow would also open PostScript, and run an interpreter on it.
FORMATS = {
    "avif": "AVIF",
    "bmp": "BMP",
    "gif": "GIF",
    "ico": "ICO",
    "j2k": "JPEG2000",
    "jfif": "JPEG",
    "jp2": "JPEG2000",
    "jpe": "JPEG",
    "jpeg": "JPEG",
    "jpg": "JPEG",
    "pbm": "PPM",
    "pgm": "PPM",
    "png": "PNG",
    "pnm": "PPM",
    "ppm": "PPM",
    "qoi": "QOI",
    "tga": "TGA",
    "tif": "TIFF",
    "tiff": "TIFF",
    "webp": "WEBP",
}

# What Pillow raises on damaged bytes, found by flipping and cutting bytes of every format above.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    RuntimeError,
    ArithmeticError,
    LookupError,
    EOFError,
    TypeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

# Pillow clips these to 255 when it converts them to RGB: a white image without a word.
_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True, kw_only=True)
class Resizing:
    """What is done to an image while it is 8-bit; nothing by default.

    Args:
        resize: Side N of the square that the whole image is squeezed to, or None.
        size: Side N of the centre square that is cut after the shorter side was brought to N, or None.
    """

    resize: int | None = None
    size: int | None = None

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in vars(self).items() if value is not None)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the resized RGB image."""
        if self.resize is not None:
            return _scaled(image, self.resize, self.resize)
        if self.size is not None:
            short = min(image.size)
            image = _scaled(image, self.size * image.width // short, self.size * image.height // short)
            left, top = round((image.width - self.size) / 2), round((image.height - self.size) / 2)
            return image.crop((left, top, left + self.size, top + self.size))
        return image


def _scaled(image: Image.Image, width: int, height: int) -> Image.Image:
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


def open_image(data: bytes) -> Image.Image:
    """Return the image that the bytes encode, not decoded yet.

    Raises:
        OSError: (or another of `UNREADABLE`) They encode none, or one of a format that is not in `FORMATS`.
    """
    try:
        return Image.open(io.BytesIO(data), formats=_installed_formats())
    except UnidentifiedImageError:
        # Pillow names the buffer's address, which is another in every run.
        raise UnidentifiedImageError(f"cannot identify the format of {len(data):,} bytes") from None


@functools.cache
def _installed_formats() -> tuple[str, ...]:
    Image.init()  # not every build of Pillow has AVIF
    return tuple(name for name in dict.fromkeys(FORMATS.values()) if name in Image.OPEN)


def to_pixels(image: Image.Image, resizing: Resizing | None = None) -> Tensor:
    """Decode an image to RGB.

    Args:
        image: Any mode with at most 8 bits a channel.
        resizing: Applied to the 8-bit RGB image.

    Returns:
        Float32 `[3, H, W]`, each value the float32 nearest to level/255.

    Raises:
        ValueError: (or another of `UNREADABLE`) The bytes are damaged, or the channels have more than 8 bits.
    """
    if image.mode in _DEEP_MODES:
        raise ValueError(f"its channels have more than 8 bits (Pillow mode {image.mode}); save it as 8-bit RGB")
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    if resizing is not None:
        rgb = resizing(rgb)
    levels = np.frombuffer(rgb.tobytes(), np.uint8).reshape(rgb.height, rgb.width, 3).transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(levels, dtype=np.float32) / np.float32(255))


def stack_images(images: Sequence[Tensor], source: str) -> Tensor:
    """Join images `[3, H, W]` into a batch `[B, 3, H, W]`.

    Raises:
        DataError: Their sizes differ.
    """
    sizes = {tuple(image.shape[1:]) for image in images}
    if len(sizes) > 1:
        shown = ", ".join(f"{height}x{width}" for height, width in sorted(sizes)[:3])
        raise DataError(
            f"{source} holds images of several sizes ({shown}), which one batch cannot.",
            "Give them one size in the source: ?size=224 (crops) or ?resize=32 (squeezes).",
        )
    return torch.stack(list(images))
