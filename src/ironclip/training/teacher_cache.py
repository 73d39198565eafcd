"""The frozen model's embeddings of the clean training images: computed once, kept on the disk, mapped into memory.

A folder a teacher, data set, preprocessing and precision, named by the hash of these; in it chunks of rows, each under
a name that bears its sha256. A run verifies every chunk when it opens the cache and computes a damaged one anew.

An embedding is given only for the very pixels that it was computed from: each row carries their digest. Under random
augmentation the first batch differs, and the cache is off for the rest of the run; attacked images never reach it.

A cached row equals a live one bit for bit where rows do not depend on their tile (`models/fast.py`): in batches of a
multiple of 16 on the fast path. A last, smaller batch may differ by 1e-7 there, and a tower without fast path anywhere,
so the cache is for those who ask for it.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ironclip.data.contract import Dataset
from ironclip.data.images import stack_images
from ironclip.data.order import read_batches
from ironclip.files import hashed_files, read_hashed, write_atomically, write_hashed
from ironclip.methods.base import Batch
from ironclip.models.clip import CLIPModel

logger = logging.getLogger(__name__)

CHUNK = 1024
"""Images a file: what a damaged byte costs."""

TILE = 64
"""Rows a forward; a multiple of 16, so that rows are those of any other such batch."""

_DIGEST = 16
_UNREADABLE = bytes(_DIGEST)


class TeacherCache:
    """Embeddings by sample; what `methods.base.Teacher` asks before it passes a batch.

    Args:
        keys: Of the samples, in the order of the rows.
        chunks: Records of `pixels` (a digest) and `embedding` `[D]`, `CHUNK` a chunk, fewer in the last.
    """

    def __init__(self, keys: Sequence[str], chunks: Sequence[np.ndarray[Any, Any]]) -> None:
        self._rows = {key: row for row, key in enumerate(keys)}
        self._chunks = chunks
        self._off = False

    def __call__(self, batch: Batch) -> Tensor | None:
        """Return the raw embeddings `[B, D]` of the batch's clean images, or None where they have to be computed."""
        rows = [self._rows.get(key) for key in batch.keys]
        if self._off or None in rows:  # held-out images are not in it
            return None
        stored = [self._chunks[row // CHUNK][row % CHUNK] for row in rows if row is not None]
        for record, pixels in zip(stored, batch.pixels.cpu(), strict=True):
            digest = record["pixels"].tobytes()
            if digest != _digest(pixels):
                self._off = digest != _UNREADABLE
                if self._off:
                    logger.warning("the images are not those that the teacher cache was made of: it is off.")
                return None
        return torch.from_numpy(np.stack([record["embedding"] for record in stored])).to(batch.pixels.device)


def open_teacher_cache(
    folder: Path,
    model: CLIPModel,
    data: Dataset,
    *,
    acting: Callable[[Tensor], Tensor],
    acting_at: str,
    precision: torch.dtype,
    strict: bool,
) -> TeacherCache:
    """Open the cache of a teacher and a data set; what is missing or damaged is computed.

    Args:
        folder: Holds the caches of any teachers and data sets.
        model: The teacher.
        data: The training samples.
        acting: From stored images to those that a batch holds.
        acting_at: Which images those are, as the threat model names it.
        precision: Of the passes through the teacher.
        strict: An unreadable sample is fatal; otherwise its row stays empty.

    Raises:
        UnreadableSampleError: Under `strict`.
    """
    identity = {
        "weights": model.spec.sha256,
        "preprocessing": model.spec.preprocessing.record(),
        "data": data.fingerprint,
        "acting": acting_at,
        "precision": str(precision).removeprefix("torch."),
        "fast_path": model.fast_path,
        "device": model.device.type,
        "torch": torch.__version__,
    }
    text = json.dumps(identity, indent=1, sort_keys=True)
    place = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
    write_atomically(place / "of.json", text.encode())
    chunks = []
    for index, start in enumerate(range(0, len(data), CHUNK)):
        stem, positions = f"rows-{index:06}", range(start, min(start + CHUNK, len(data)))
        path = _whole(place, stem)
        if path is None:
            records = _embed(model, data, positions, acting, precision, strict)
            buffer = io.BytesIO()
            np.save(buffer, records)
            path = write_hashed(place, stem, ".npy", buffer.getvalue())
        chunks.append(np.load(path, mmap_mode="r"))
    return TeacherCache(data.keys, chunks)


def _whole(place: Path, stem: str) -> Path | None:
    """Find the file of a chunk that is what its name promises; those that are not are removed."""
    for path in hashed_files(place, ".npy"):
        if path.name.startswith(f"{stem}-"):
            if read_hashed(path) is not None:
                return path
            logger.warning("%s is damaged: it is computed anew.", path)
            path.unlink()
    return None


def _embed(
    model: CLIPModel,
    data: Dataset,
    positions: Sequence[int],
    acting: Callable[[Tensor], Tensor],
    precision: torch.dtype,
    strict: bool,
) -> np.ndarray[Any, Any]:
    """Embed the samples at these positions, in tiles that are filled up."""
    found: dict[str, tuple[bytes, Tensor]] = {}
    unreadable: dict[str, str] = {}
    for samples in read_batches(data, positions, TILE, strict=strict, unreadable=unreadable):
        if not samples:
            continue
        pixels = acting(stack_images([sample.pixels for sample in samples], data.source))
        tile = torch.cat([pixels, pixels[:1].expand(TILE - len(pixels), -1, -1, -1)])
        with torch.no_grad(), model.computing(precision):
            embedding = model.embed_image(tile.to(model.device)).cpu()
        for row, sample in enumerate(samples):
            found[sample.key] = _digest(pixels[row]), embedding[row]
    width = next((len(embedding) for _, embedding in found.values()), 0)
    records = np.zeros(len(positions), dtype=[("pixels", f"V{_DIGEST}"), ("embedding", "<f4", (width,))])
    for record, position in zip(records, positions, strict=True):
        if data.keys[position] in found:
            digest, embedding = found[data.keys[position]]
            record["pixels"], record["embedding"] = np.void(digest), embedding.numpy()
    return records


def _digest(pixels: Tensor) -> bytes:
    """Hash one image `[3, H, W]`."""
    hashed = hashlib.blake2b(str(tuple(pixels.shape)).encode(), digest_size=_DIGEST)
    hashed.update(pixels.contiguous().numpy().data)
    return hashed.digest()
