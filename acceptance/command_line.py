"""IronCLIP as users start it: a process of its own, from this clone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from acceptance.claims import ROOT

IRONCLIP = (sys.executable, "-m", "ironclip")


def environment() -> dict[str, str]:
    """Return this process's environment, in which `import ironclip` finds this clone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("IRONCLIP_")}
    return kept | {"PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200"}


def ironclip(*words: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run `ironclip …` to its end, whatever that is."""
    command = [*IRONCLIP, *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True)


def must(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """Return a process that succeeded.

    Raises:
        RuntimeError: It did not; with the end of what it said.
    """
    if done.returncode:
        said = " ".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-3:])
        raise RuntimeError(f"{' '.join(done.args[1:5])} … ended with {done.returncode}: {said}")
    return done
