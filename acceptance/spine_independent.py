"""Saved adversarial images, checked by a script that does not know IronCLIP."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

from acceptance.claims import ROOT, SHARED, Claim, Context, Figure, at_least, exactly, item
from acceptance.command_line import ironclip, must
from acceptance.spine_exact import FILES, MODULES

MODEL = SHARED / "models" / "tiny-trial"
DATA = SHARED / "data"
SAMPLES = 2400
"""Of CIFAR-10's test split: about half of them are right before the attack and wrong after it."""
LIMITS = ("outside_ball", "outside_box", "other_label", "original_not_right", "not_flipped")


@item(
    "independent_check",
    claims=[
        Claim("count", "a script without ironclip checks 1,000 saved adversarials", at_least(1000)),
        Claim(
            "violations",
            "… in the ball (evaluation 1.2), in the box, flipped in stock open_clip: violations",
            exactly(0),
        ),
    ],
    modules=[*MODULES, "ironclip.cli.evaluate", "acceptance.command_line", "acceptance.check_adversarials"],
    files=[*FILES, "../shared/data/cifar10/*.txt", "../shared/data/cifar10/templates.json"],
)
def independent_check(context: Context) -> Iterator[Figure]:
    run = context.work / "run"
    words = ("--suite", "natural", "--dataset", "cifar10", "--data-root", DATA, "--eps", "2/255", "--save", "all")
    must(ironclip("eval", f"local-dir:{MODEL}", *words, "--limit", context.pick(SAMPLES, 48), "--out", run))
    (unit,) = json.loads((run / "run.json").read_text())["units"]
    script = [sys.executable, "-I", str(ROOT / "acceptance" / "check_adversarials.py"), str(run), unit]
    place = ["--shards", str(DATA / "cifar10"), "--model", str(MODEL)]
    found = json.loads(must(subprocess.run([*script, *place], capture_output=True, text=True)).stdout)
    count = found["adversarials"]
    if context.short:
        yield Figure("count", None, f"the short form: {count} adversarials")
    else:
        yield Figure("count", count, f"{count:,} of {found['images']:,} saved images, PGD-20 at {found['eps']}")
    farthest = f"farthest {found['largest_distance_times_255']:.6f}/255"
    counts = ", ".join(f"{name.replace('_', ' ')} {found[name]}" for name in LIMITS)
    violations = sum(found[name] for name in LIMITS)
    yield Figure("violations", violations if count else float("nan"), f"{counts}; {farthest}")
