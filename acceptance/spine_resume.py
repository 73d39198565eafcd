"""Training that is killed ends where training that is not ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml

from acceptance.claims import SHARED, Claim, Context, Figure, exactly, item
from acceptance.command_line import ironclip, must
from acceptance.killing import differing_steps, differing_tensors, kill_at


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
        *("acceptance.command_line", "acceptance.killing", "ironclip.cli.train", "ironclip.training.engine"),
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
            kill_at(step, folder / "killed" / "log.jsonl", words("killed"), folder / "output.txt")
        must(ironclip(*words("killed")))
        weights = [folder / run / "model" / "open_clip_model.safetensors" for run in ("straight", "killed")]
        different, tensors = differing_tensors(*weights)
        yield Figure(
            "weights", different, f"{different} of {tensors} tensors, bit for bit; {steps} steps, killed at {at}"
        )
        wrong = differing_steps(*(folder / run / "log.jsonl" for run in ("straight", "killed")), steps)
        yield Figure("log", wrong, f"{wrong} of {steps} steps")
