"""Training that is killed ends where training that is not ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import load_file

from acceptance.claims import SHARED, Claim, Context, Figure, exactly, item
from acceptance.command_line import IRONCLIP, environment, ironclip, must

PATIENCE = 900.0
"""Seconds that a run may take to reach its next step."""


def _recipe(steps: int) -> dict[str, Any]:
    return {
        "title": "A few steps, to be killed",
        "method": {"name": "tecoa"},
        "model": f"local-dir:{SHARED / 'models' / 'tiny-trial'}",
        "data": {"train": "wds:{data}/cifar10?split=train", "templates": ["a photo of a {}."], "hold_out": 32},
        "threat": {"norm": "linf", "eps": "2/255"},
        "attack": {"name": "pgd_m", "steps": 2},
        # 7 steps an epoch, the last of them smaller: an end of an epoch lies inside the run.
        "optimisation": {"lr": 1e-4, "steps": steps, "batch_size": 32, "warmup_steps": 2, "clip_norm": 1.0},
        "validation": {"every": 5, "samples": 16, "attack": {"name": "pgd", "steps": 2}},
        "checkpoint": {"every": 2},
    }


LIMIT = 240


@item(
    "kill_resume",
    claims=[
        Claim(
            "weights", "training killed by SIGKILL at three random steps and resumed: weights that differ", exactly(0)
        ),
        Claim("log", "… and losses of its log that differ", exactly(0)),
    ],
    modules=[
        *("acceptance.command_line", "ironclip.cli.train", "ironclip.training.engine"),
        *("ironclip.methods.tecoa", "ironclip.attacks.pgd"),
    ],
    files=["../shared/models/tiny-trial/*", "../shared/data/cifar10/train-*.tar.gz"],
)
def kill_resume(context: Context) -> Iterator[Figure]:
    steps, kills = context.pick(12, 6), context.pick(3, 1)
    drawn = np.random.default_rng(0).choice(np.arange(1, steps), size=kills, replace=False)
    at = sorted(int(step) for step in drawn)
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(_recipe(steps)))

        def words(out: str) -> tuple[object, ...]:
            place = ("--out", folder / out, "--data-root", SHARED / "data")
            return ("train", folder / "recipe.yaml", *place, "--limit", LIMIT)

        must(ironclip(*words("straight")))
        for step in at:
            _kill_at(step, folder / "killed", words("killed"))
        must(ironclip(*words("killed")))
        straight, killed = (
            load_file(folder / run / "model" / "open_clip_model.safetensors") for run in ("straight", "killed")
        )
        different = [key for key in straight.keys() | killed.keys() if not _same(straight.get(key), killed.get(key))]
        shown = f"{len(different)} of {len(straight)} tensors, bit for bit; {steps} steps, killed at {at}"
        yield Figure("weights", len(different), shown)
        losses = [_losses(folder / run / "log.jsonl") for run in ("straight", "killed")]
        wrong = sum(losses[0].get(step) != losses[1].get(step) for step in range(1, steps + 1))
        yield Figure("log", wrong + len(losses[0]) - steps, f"{wrong} of {len(losses[0])} steps")


def _kill_at(step: int, out: Path, words: tuple[object, ...]) -> None:
    """Start or resume a run and kill it as soon as its log tells of a step.

    Raises:
        RuntimeError: It ended by itself, or never came so far.
    """
    log = out / "log.jsonl"
    earlier = _identity(log)
    with (out.parent / "output.txt").open("w") as output:
        command = [*IRONCLIP, *map(str, words)]
        process = subprocess.Popen(command, env=environment(), stdout=output, stderr=subprocess.STDOUT)
        began = time.monotonic()
        try:
            # A run that goes on replaces the log of its earlier sitting first: only then is it this sitting's.
            while _identity(log) == earlier or max(_losses(log), default=0) < step:
                if process.poll() is not None:
                    said = (out.parent / "output.txt").read_text().strip().splitlines()[-2:]
                    raise RuntimeError(f"training ended with {process.returncode} before step {step}: {' '.join(said)}")
                if time.monotonic() - began > PATIENCE:
                    raise RuntimeError(f"training did not reach step {step} in {PATIENCE:.0f} s")
                time.sleep(0.002)
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
            code = process.wait()
    if code != -signal.SIGKILL:
        raise RuntimeError(f"training ended with {code} before it could be killed at step {step}")


def _identity(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None


def _losses(log: Path) -> dict[int, float]:
    """Read the loss of each step that the log tells of; a line that is still being written does not count."""
    found = {}
    for line in log.read_text().splitlines(keepends=True):
        if line.endswith("\n") and "loss" in (entry := json.loads(line)):
            found[int(entry["step"])] = float(entry["loss"])
    return found


def _same(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    return first is not None and second is not None and first.tobytes() == second.tobytes()
