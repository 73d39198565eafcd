"""A fresh clone on a machine that has nothing else."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from acceptance.claims import ROOT, CannotRunError, Claim, Context, Figure, exactly, item
from acceptance.store import git

BUILT_FROM = ("src", "tests", "acceptance", "benchmarks", "tools", "recipes", "pyproject.toml", "constraints.txt")
KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR")
"""Variables that the clone inherits, besides those that say where packages come from:"""
PACKAGES = ("PIP_", "SSL_", "REQUESTS_", "CURL_", "http_", "https_", "no_", "HTTP_", "HTTPS_", "NO_")
PIP_SETTINGS = (".config/pip/pip.conf", ".pip/pip.conf")


def committed() -> str:
    """Return the hash of what a clone would test."""
    listed = git("ls-tree", "-r", "HEAD", "--", *BUILT_FROM, "Makefile", ".ci")
    return hashlib.sha256(listed.encode()).hexdigest()


@item(
    "fresh_clone",
    claims=[
        Claim("first", "fresh clone, `make test`, nothing else on the machine: green, with installation", exactly(0)),
        Claim("again", "… its time without installation", exactly(0)),
        Claim("ci", ".ci/run calls `make test` (1: it does)", exactly(1)),
    ],
    modules=[],
    state=committed,
)
def fresh_clone(context: Context) -> Iterator[Figure]:
    if context.short:
        raise CannotRunError("the short form installs nothing")
    head = git("rev-parse", "--short=12", "HEAD")
    with tempfile.TemporaryDirectory(prefix="ironclip-clone-") as name:
        folder = Path(name)
        (folder / "home").mkdir()
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(folder / "clone")], check=True)
        for claim, form in (("first", "with"), ("again", "without")):
            seconds, code, last = _make_test(folder, context.work / f"{claim}.txt")
            shown = f"{seconds:.0f} s {form} installation: exit {code}, {last} (at {head})"
            yield Figure(claim, code, shown)
        lines = (folder / "clone" / ".ci" / "run").read_text().splitlines()
        yield Figure("ci", float("make test" in (line.strip() for line in lines)))


def _make_test(folder: Path, log: Path) -> tuple[float, int, str]:
    """Run `make test` in the clone: seconds, exit code, last line of what it said."""
    environment = {key: value for key, value in os.environ.items() if key in KEPT or key.startswith(PACKAGES)}
    for settings in map(Path.home().joinpath, PIP_SETTINGS):
        if settings.is_file():
            environment.setdefault("PIP_CONFIG_FILE", str(settings))
    # A home of its own: no cache, no environment of an earlier installation.
    environment |= {"HOME": str(folder / "home"), "IRONCLIP_VENV": str(folder / "environment")}
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with log.open("w") as output:
        command = ["make", "test"]
        done = subprocess.run(command, cwd=folder / "clone", env=environment, stdout=output, stderr=subprocess.STDOUT)
    # Make's own last word is that something failed.
    said = [line for line in log.read_text().splitlines() if line.strip() and not line.startswith("make")]
    return time.monotonic() - began, done.returncode, said[-1].strip("= ") if said else "nothing said"
