"""What a stored figure hangs on, and where it is kept.

A result is kept under a key: a hash of the item's own file and of all code of ours that the measured modules import
(comments and docstrings apart), of recipes, data and weights, of the versions of packages, and of the processor. Only
an equal key brings it back. So it does not matter at which commit it was measured: at HEAD the same code would run on
the same input, and a results file in which every item is either new or found under its key may carry HEAD as its
commit. The commit of the measurement itself is kept beside the figures.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import yaml

from acceptance.claims import ROOT, CannotRunError, Figure, Item
from ironclip.data.fingerprints import file_sha256
from ironclip.files import write_atomically
from ironclip.machine import describe_machine
from ironclip.provenance import source_sha256, versions

KEY_DIGITS = 12
MEASURED = ("src", "recipes", "acceptance", "benchmarks")
"""Folders whose uncommitted changes make a commit "+dirty"."""


@dataclass(frozen=True)
class Stored:
    """The figures of an item.

    Attributes:
        figures: One a claim.
        seconds: Spent on each.
        commit: At which they were measured.
        created: When, ISO 8601.
    """

    figures: tuple[Figure, ...]
    seconds: tuple[float, ...]
    commit: str
    created: str


def key_of(item: Item) -> str:
    """Hash what the figures of an item hang on; it reads the disk anew at each call.

    Raises:
        CannotRunError: A file that the item needs is not here.
    """
    importlib.invalidate_caches()
    source_sha256.cache_clear()
    lines = [item.name, source_sha256(*item.modules), json.dumps(environment(), sort_keys=True)]
    lines += [f"{path} {_content(path)}" for path in needed_files(item)]
    if item.state is not None:
        lines.append(item.state())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def needed_files(item: Item) -> list[Path]:
    """Return the recipes, data and weights of an item.

    Raises:
        CannotRunError: One is not here.
    """
    found = []
    for pattern in item.files:
        base, _, rest = pattern.rpartition("/")
        matches = sorted((ROOT / base).resolve().glob(rest))
        if not matches:
            raise CannotRunError(f"{pattern} is not here")
        found += matches
    return found


def environment() -> dict[str, str]:
    """Return what besides code and input can move a figure: versions, processor, threads."""
    machine = describe_machine(ROOT)
    return versions() | {"processor": f"{machine.processor}, {machine.cores} cores, {machine.threads} threads"}


def commit() -> str:
    """Return HEAD, with "+dirty" where measured folders hold what it does not; "unknown" outside a repository."""
    try:
        head = git("rev-parse", "HEAD")
        return f"{head}+dirty" if git("status", "--porcelain", "--", *MEASURED) else head
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def git(*words: str) -> str:
    """Run git in the repository and return what it prints."""
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def read_stored(folder: Path, item: Item, key: str) -> Stored | None:
    """Return the figures kept under this key, None where there are none."""
    path = stored_path(folder, item, key)
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["key"] != key:  # the name of the file holds the first digits only
        return None
    figures = tuple(Figure(**figure) for figure in record["figures"])
    return Stored(figures, tuple(record["seconds"]), record["commit"], record["created"])


def write_stored(folder: Path, item: Item, key: str, figures: Sequence[Figure], seconds: Sequence[float]) -> None:
    """Keep the figures of an item under its key."""
    record = {
        "item": item.name,
        "key": key,
        "commit": commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(),
        "figures": [asdict(figure) for figure in figures],
        "seconds": list(seconds),
    }
    write_atomically(stored_path(folder, item, key), json.dumps(record, indent=1, ensure_ascii=False).encode())


def stored_path(folder: Path, item: Item, key: str) -> Path:
    """Return where the figures of an item are kept; beside it, without the suffix, lies its work folder."""
    return folder / f"{item.name}-{key[:KEY_DIGITS]}.json"


def _content(path: Path) -> str:
    """Hash a file; a YAML file by what it says, so that a comment in a recipe changes nothing."""
    if path.suffix == ".yaml":
        plain = json.dumps(yaml.safe_load(path.read_text(encoding="utf-8")), sort_keys=True)
        return hashlib.sha256(plain.encode()).hexdigest()
    status = path.stat()
    return _sha256(path, status.st_mtime_ns, status.st_size)


@cache
def _sha256(path: Path, changed: int, size: int) -> str:
    return file_sha256(path)
