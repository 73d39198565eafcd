"""Writers of tiny image data for tests: no real data set needed."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def levels(number: int, side: int = 8) -> np.ndarray:
    """uint8 [side, side, 3], another one for each number."""
    return np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)


def encoded(number: int, side: int = 8, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(levels(number, side)).save(buffer, form)
    return buffer.getvalue()


def tar_bytes(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def labelled(first: int, count: int, classes: int = 2, side: int = 8) -> dict[str, bytes]:
    """Members of `count` samples whose image and label follow from their number."""
    members = {}
    for number in range(first, first + count):
        members[f"{number:06d}.png"] = encoded(number, side)
        members[f"{number:06d}.cls"] = str(number % classes).encode()
    return members


def write_shard(path: Path, members: Mapping[str, bytes]) -> Path:
    """Write a shard, gzipped where its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = tar_bytes(members)
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix in (".gz", ".tgz") else content)
    return path
