"""Make the one Python environment of this repository, outside the clone, and print its folder.

Needs nothing but Python 3.11 with venv and pip. The folder is named after a hash of everything that decides what is
installed (constraints.txt, the dependencies of pyproject.toml, the Python version, the platform), so a changed pin
makes a new environment and an unchanged one is found again by every clone. IRONCLIP_VENV names another folder.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  # before anything that an older Python could not import
    sys.exit(f"IronCLIP needs Python 3.11 or later, this is {sys.version.split()[0]}.\nRun: make PYTHON=python3.11")

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("dev", "hf")  # the second through the first
STAMP = "ironclip-complete"  # written last: a folder without it was interrupted


def key() -> str:
    """Hash what decides the content of the environment."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    parts = [
        (ROOT / "constraints.txt").read_text(),
        project["build-system"]["requires"],
        project["project"]["dependencies"],
        # An extra that is not installed here may change without a new environment.
        {extra: project["project"]["optional-dependencies"][extra] for extra in EXTRAS},
        platform.python_implementation(),
        platform.python_version(),
        platform.system(),
        platform.machine(),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def folder() -> Path:
    """Return where the environment is, or will be."""
    named = os.environ.get("IRONCLIP_VENV")
    return Path(named).absolute() if named else Path.home() / ".cache" / "ironclip" / f"venv-{key()}"


def install(place: Path) -> None:
    """Make the environment from nothing; an interrupted one is thrown away, since no one knows what it lacks."""
    if place.exists():
        if not (place / "pyvenv.cfg").is_file() and any(place.iterdir()):
            sys.exit(f"{place} exists and is no Python environment.\nName another folder in IRONCLIP_VENV.")
        shutil.rmtree(place)
    began = time.monotonic()
    say(f"making {place} (once; some gigabytes)")
    venv.EnvBuilder(with_pip=True, symlinks=True).create(place)
    pip(place, "install", "-c", "constraints.txt", "hatchling", "editables")
    pip(place, "install", "-c", "constraints.txt", "--no-build-isolation", "-e", ".[dev]")
    (place / STAMP).write_text(key() + "\n")
    say(f"installed in {time.monotonic() - began:.0f} s")


def point_here(place: Path) -> None:
    """Make `ironclip` in the environment run this clone: several clones may share the environment."""
    # Where pip notes what an installation came from (PEP 610).
    notes = place.glob("lib/python*/site-packages/ironclip-*.dist-info/direct_url.json")
    if [json.loads(note.read_text())["url"] for note in notes] != [ROOT.as_uri()]:
        pip(place, "install", "--no-build-isolation", "--no-deps", "-e", ".")


def pip(place: Path, *arguments: str) -> None:
    command = [str(place / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "-qq", *arguments]
    # stdout carries the folder's name only.
    if subprocess.run(command, cwd=ROOT, stdout=sys.stderr).returncode:
        sys.exit(f"the installation into {place} failed, see above.\nIt starts afresh the next time.")


def say(text: str) -> None:
    print(f"environment: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def only_one(place: Path) -> Iterator[None]:
    """Let one process at a time work on the environment; the others wait."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place.with_name(place.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> None:
    place = folder()
    with only_one(place):
        stamp = place / STAMP
        if not stamp.is_file() or stamp.read_text().strip() != key():
            install(place)
        point_here(place)
    print(place)


if __name__ == "__main__":
    main()
