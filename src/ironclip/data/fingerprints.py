"""Fingerprints: what a data set holds, as sha256 hex, the same on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

# Up to this many bytes a fingerprint covers contents, which costs about a second; above it names and sizes.
FULL_HASH_BYTES = 2**30


def fingerprint(parts: Iterable[str]) -> str:
    """Return the sha256 hex of the parts, one a line."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the sha256 hex of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_fingerprint(files: Sequence[tuple[str, Path]]) -> str:
    """Return the sha256 hex of named files: of names and contents, above 1 GiB in all of names and sizes.

    A file that is not there counts with its name only, so that its return changes the fingerprint.
    """
    sizes = [path.stat().st_size if path.is_file() else -1 for _, path in files]
    whole = sum(sizes) <= FULL_HASH_BYTES
    lines = []
    for (name, path), size in zip(files, sizes, strict=True):
        lines.append(f"{name}\t{file_sha256(path) if whole and size >= 0 else size}")
    return fingerprint(lines)
