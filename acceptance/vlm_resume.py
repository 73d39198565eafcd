"""An attack on answers that was killed and goes on, and one in other tiles, against one that ran through."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from acceptance.claims import Claim, Context, Figure, at_least, exactly, item
from acceptance.command_line import IRONCLIP, environment
from acceptance.vlm_attacks import MODULES
from acceptance.vlm_model import TINY_VLM
from ironclip.evaluation.task_store import TaskStore
from ironclip.models.vlm_sources import BUNDLED_NAME

PATIENCE = 1800.0


def words(out: Path, context: Context, tile: int) -> list[str]:
    """Return the command line of a run."""
    images, steps = context.pick((150, 20), (70, 1))
    size = ["--limit", str(images), "--steps", str(steps), "--batch-size", str(tile)]
    return [*IRONCLIP, "eval-task", "answer", BUNDLED_NAME, *size, "--out", str(out)]


def kill_after_a_chunk(command: list[str], out: Path) -> None:
    """Start a run and kill it as soon as its first chunk is stored.

    Raises:
        RuntimeError: It ended by itself, or stored none.
    """
    with (out.parent / f"{out.name}.log").open("w") as said:
        process = subprocess.Popen(command, env=environment(), stdout=said, stderr=subprocess.STDOUT)
        began = time.monotonic()
        try:
            while not any((out / "samples").glob("*.parquet")):
                if process.poll() is not None or time.monotonic() - began > PATIENCE:
                    raise RuntimeError(f"the run ended with {process.returncode} before it stored a chunk")
                time.sleep(0.01)
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
            process.wait()


@item(
    "resume",
    claims=(
        Claim("left", "rows that a killed run had left to do", at_least(1)),
        Claim("resumed", "killed and resumed: rows that differ from a run that was not", exactly(0)),
        Claim("tiles", "tiles of 32: rows that differ from those of 16", exactly(0)),
    ),
    modules=(*MODULES, "ironclip.cli.evaluate_task"),
    files=TINY_VLM,
)
def resume(context: Context) -> Iterator[Figure]:
    context.work.mkdir(parents=True, exist_ok=True)
    whole, killed, wide = (context.work / name for name in ("whole", "killed", "wide"))
    subprocess.run(words(whole, context, 16), env=environment(), check=True, capture_output=True)
    expected = TaskStore.open(whole).rows()
    if not (killed / "task.json").is_file():
        kill_after_a_chunk(words(killed, context, 16), killed)
    left = len(expected) - len(TaskStore.open(killed).rows())
    yield Figure("left", left, f"{left} of {len(expected)}")
    for name, folder, tile in (("resumed", killed, 16), ("tiles", wide, 32)):
        subprocess.run(words(folder, context, tile), env=environment(), check=True, capture_output=True)
        found = TaskStore.open(folder).rows()
        differ = sum(one != other for one, other in zip(expected, found, strict=False)) + abs(
            len(expected) - len(found)
        )
        yield Figure(name, differ, f"{differ} of {len(expected)}")
