"""Runs that are killed and go on: started as users start them, killed by their log, compared bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from acceptance.command_line import IRONCLIP, environment

PATIENCE = 900.0
"""Seconds that a run may take to reach its next step."""


def kill_at(step: int, log: Path, words: Iterable[object], output: Path) -> None:
    """Start or resume `ironclip …` and kill it as soon as its log tells of a step.

    Args:
        step: From 1.
        log: The run's log.jsonl; it need not be there yet.
        words: What follows `ironclip`.
        output: File for what it says.

    Raises:
        RuntimeError: It ended by itself, or never came so far.
    """
    earlier = _state(log)
    with output.open("w") as said:
        command = [*IRONCLIP, *map(str, words)]
        process = subprocess.Popen(command, env=environment(), stdout=said, stderr=subprocess.STDOUT)
        began = time.monotonic()
        try:
            # A run that goes on may take lines of its earlier sitting back first: only then is the log this sitting's.
            while _state(log) == earlier or max(steps_of(log), default=0) < step:
                if process.poll() is not None:
                    last = " ".join(output.read_text().strip().splitlines()[-2:])
                    raise RuntimeError(f"the run ended with {process.returncode} before step {step}: {last}")
                if time.monotonic() - began > PATIENCE:
                    raise RuntimeError(f"the run did not reach step {step} in {PATIENCE:.0f} s")
                time.sleep(0.002)
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
            code = process.wait()
    if code != -signal.SIGKILL:
        raise RuntimeError(f"the run ended with {code} before it could be killed at step {step}")


def steps_of(log: Path) -> dict[int, dict[str, Any]]:
    """Read what a log tells of each step, speeds and validations apart; a line that is still written does not count."""
    found = {}
    for line in log.read_text().splitlines(keepends=True):
        if line.endswith("\n") and "validation" not in (entry := json.loads(line)):
            step = int(entry.pop("step"))
            found[step] = {name: value for name, value in entry.items() if not name.endswith("_per_second")}
    return found


def differing_steps(first: Path, second: Path, steps: int) -> int:
    """Count the steps, from 1, of which two logs do not tell the same, and those that should not be there."""
    one, other = steps_of(first), steps_of(second)
    return sum(one.get(step) != other.get(step) for step in range(1, steps + 1)) + abs(len(one) - steps)


def differing_tensors(first: Path, second: Path) -> tuple[int, int]:
    """Count the tensors of two safetensors files that are not the same, bit for bit, and all of the first."""
    one, other = load_file(first), load_file(second)
    same = [key for key in one.keys() & other.keys() if one[key].tobytes() == other[key].tobytes()]
    return len(one.keys() | other.keys()) - len(same), len(one)


def _state(path: Path) -> tuple[int, int] | None:
    """Return which file it is and how long."""
    status = path.stat() if path.exists() else None
    return status and (status.st_ino, status.st_size)
