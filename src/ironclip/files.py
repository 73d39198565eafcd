"""Files that are there whole or not at all, and that carry their own hash in their name.

A chunk is written to a temporary file in the same folder, flushed to the disk, and renamed: a killed process leaves
either the whole chunk or a temporary file that nobody reads. Source: evaluation plan 6.7.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ironclip.errors import ConfigError

HASH_DIGITS = 8

logger = logging.getLogger(__name__)


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keep a run folder for this process; makes it, and leaves no lock behind, however the process ends.

    Two processes that write into one run would each undo what the other did.

    Args:
        folder: The run folder.

    Raises:
        ConfigError: Another process holds it, or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file, not a run folder.", "Give another folder with --out.")
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another process is writing into {folder}.",
                "Wait until it is done, or give another folder with --out.",
            ) from None
        except OSError as error:  # some network file systems lock no folders
            logger.warning("%s cannot be locked (%s): see that no other process writes into it.", folder, error)
        yield
    finally:
        os.close(descriptor)
        for place in made:  # a request that was refused leaves nothing
            with suppress(OSError):
                place.rmdir()


def write_atomically(path: Path, content: bytes) -> Path:
    """Put the content at `path`, whole or not at all, also across a power cut; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        return replace_durably(temporary, path)
    except OSError:  # a full disk gets back what it gave
        temporary.unlink(missing_ok=True)
        raise


def replace_durably(temporary: Path, path: Path) -> Path:
    """Put a written file of the same folder in its place, on the disk before its name is."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)
    return path


def write_hashed(folder: Path, stem: str, suffix: str, content: bytes) -> Path:
    """Write `<stem>-<first 8 hex of the sha256><suffix>` atomically and return its path."""
    return write_atomically(folder / f"{stem}-{_hash(content)}{suffix}", content)


def read_hashed(path: Path) -> bytes | None:
    """Return the content of a file that `write_hashed` wrote, or None if it is not what its name promises."""
    content = path.read_bytes()
    return content if path.stem.rpartition("-")[2] == _hash(content) else None


def hashed_files(folder: Path, suffix: str) -> list[Path]:
    """Return the files of a folder with that suffix, by name; temporary files are left out."""
    return sorted(path for path in folder.glob(f"*{suffix}") if not path.name.startswith("."))


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:HASH_DIGITS]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
