"""Clean images and what an attack made of them, as one safetensors file with their keys."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from ironclip.errors import DataError, ShapeError

Pixels = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Adversarials:
    """Clean images and what the attack made of them.

    Attributes:
        keys: One sample id an image.
        clean: Float32 `[K, 3, H, W]` in [0, 1].
        adversarial: Float32 `[K, 3, H, W]`.
    """

    keys: Sequence[str]
    clean: Pixels
    adversarial: Pixels


def pack_images(images: Adversarials, known: set[str]) -> bytes:
    """Return the content of a file of images.

    Args:
        images: What to store.
        known: Samples that have rows; images of no others are stored.

    Raises:
        ShapeError: Not one clean and one attacked image a key.
        DataError: An image of a sample that has no row.
    """
    clean, adversarial = (np.ascontiguousarray(side, dtype=np.float32) for side in (images.clean, images.adversarial))
    if clean.ndim != 4 or clean.shape != adversarial.shape or len(clean) != len(images.keys):
        raise ShapeError(
            f"{len(images.keys)} keys for clean images {clean.shape} and attacked images {adversarial.shape}.",
            "Give float32 [K, 3, H, W] twice, and K keys.",
        )
    strangers = set(images.keys) - known
    if strangers:
        raise DataError(f"images of {min(strangers)}, which has no row in the chunk.", "Store them with their rows.")
    metadata = {"keys": json.dumps(list(images.keys))}
    return bytes(safetensors.numpy.save({"clean": clean, "adversarial": adversarial}, metadata=metadata))


def image_keys(content: bytes) -> list[str]:
    """Return whose images a file holds, without reading them."""
    # The header alone: eight bytes of length, then JSON, as the safetensors format defines it.
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    keys: list[str] = json.loads(header["__metadata__"]["keys"])
    return keys


def unpack_images(content: bytes, ids: Collection[str]) -> dict[str, tuple[Pixels, Pixels]]:
    """Return the clean and the attacked image `[3, H, W]` of those of the samples that a file holds."""
    keys = image_keys(content)
    if not set(keys) & set(ids):
        return {}
    tensors = safetensors.numpy.load(content)
    rows = ((row, key) for row, key in enumerate(keys) if key in ids)
    return {key: (tensors["clean"][row], tensors["adversarial"][row]) for row, key in rows}
