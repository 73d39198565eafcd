"""A fresh clone on a machine that has nothing else: its own home, its own environment, no variables but the needed."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from acceptance.claims import ROOT

KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR")
"""Variables that the clone inherits, besides those that say where packages come from:"""
PACKAGES = ("PIP_", "SSL_", "REQUESTS_", "CURL_", "http_", "https_", "no_", "HTTP_", "HTTPS_", "NO_")
PIP_SETTINGS = (".config/pip/pip.conf", ".pip/pip.conf")


@dataclass(frozen=True)
class Made:
    """How `make …` ended.

    Attributes:
        seconds: How long it took.
        code: Its exit code.
        last: The last line of what it said.
    """

    seconds: float
    code: int
    last: str


@dataclass(frozen=True)
class Clone:
    """A clone in a folder of its own, gone after use.

    Attributes:
        folder: Holds `clone`, `home` and `environment`.
    """

    folder: Path

    @property
    def path(self) -> Path:
        """The clone."""
        return self.folder / "clone"

    def make(self, target: str, log: Path, *, within: Sequence[str] = ()) -> Made:
        """Run `make target` to its end.

        Args:
            target: Of the Makefile.
            log: File for what it says.
            within: A command to run it in, such as one that takes the network away.
        """
        environment = {key: value for key, value in os.environ.items() if key in KEPT or key.startswith(PACKAGES)}
        for settings in map(Path.home().joinpath, PIP_SETTINGS):
            if settings.is_file():
                environment.setdefault("PIP_CONFIG_FILE", str(settings))
        # A home of its own: no cache, no environment of an earlier installation.
        environment |= {"HOME": str(self.folder / "home"), "IRONCLIP_VENV": str(self.folder / "environment")}
        log.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        with log.open("w") as output:
            command = [*within, "make", target]
            done = subprocess.run(command, cwd=self.path, env=environment, stdout=output, stderr=subprocess.STDOUT)
        # Make's own last word is that something failed.
        said = [line for line in log.read_text().splitlines() if line.strip() and not line.startswith("make")]
        return Made(time.monotonic() - began, done.returncode, said[-1].strip("= ") if said else "nothing said")


@contextmanager
def fresh_clone() -> Iterator[Clone]:
    """Clone what is committed."""
    with tempfile.TemporaryDirectory(prefix="ironclip-clone-") as name:
        clone = Clone(Path(name))
        (clone.folder / "home").mkdir()
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone.path)], check=True)
        yield clone
