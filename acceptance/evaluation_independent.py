"""Ten thousand saved adversarial images, checked by a script that does not know IronCLIP."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

from acceptance.claims import ROOT, SHARED, Claim, Context, Figure, at_least, exactly, item
from acceptance.command_line import ironclip, must
from acceptance.spine_exact import FILES, MODULES
from acceptance.spine_independent import DATA, LIMITS, MODEL


@item(
    "ten_thousand",
    claims=[
        Claim("count", "an independent script checks 10,000 saved adversarials", at_least(10_000)),
        Claim("violations", "… over budget, out of the box, or not flipped in stock open_clip", exactly(0)),
    ],
    modules=[*MODULES, "ironclip.cli.evaluate", "acceptance.command_line", "acceptance.check_adversarials"],
    files=[*FILES, "../shared/data/cifar10/*.txt", "../shared/data/cifar10/templates.json"],
)
def ten_thousand(context: Context) -> Iterator[Figure]:
    """Of CIFAR-10's test split, at several radii and two attacks, until there are so many."""
    run = context.work / "run"
    radii = context.pick(("1/255", "2/255", "4/255"), ("2/255",))
    attacks = context.pick(("pgd", "apgd:steps=20,loss=dlr"), ("pgd:steps=3",))
    words: list[object] = ["--suite", "natural", "--dataset", "cifar10", "--data-root", DATA, "--save", "all"]
    for name, values in (("--eps", radii), ("--attack", attacks)):
        for value in values:
            words += [name, value]
    images = context.pick(4200, 48)
    must(ironclip("eval", f"local-dir:{MODEL}", *words, "--limit", images, "--out", run))
    count = violations = 0
    farthest = []
    for unit in json.loads((run / "run.json").read_text())["units"]:
        script = [sys.executable, "-I", str(ROOT / "acceptance" / "check_adversarials.py"), str(run), unit]
        place = ["--shards", str(SHARED / "data" / "cifar10"), "--model", str(MODEL)]
        found = json.loads(must(subprocess.run([*script, *place], capture_output=True, text=True)).stdout)
        count += found["adversarials"]
        violations += sum(found[name] for name in LIMITS)
        farthest.append(f"{found['eps']}: {found['largest_distance_times_255']:.6f}/255")
    shown = f"{count:,} adversarials, {len(radii)} radii x {len(attacks)} attacks"
    yield Figure("count", None if context.short else count, shown)
    yield Figure(
        "violations", violations if count else float("nan"), f"{violations}; farthest at {', '.join(farthest)}"
    )
