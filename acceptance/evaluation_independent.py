"""Ten thousand saved adversarial images, checked by a script that does not know IronCLIP, as floats and as PNGs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from acceptance.claims import ROOT, SHARED, Bound, Claim, Context, Figure, at_least, exactly, item
from acceptance.command_line import ironclip, must
from acceptance.spine_exact import FILES, MODULES
from acceptance.spine_independent import DATA, LIMITS, MODEL
from ironclip.attacks.base import ATTACKS
from ironclip.attacks.threat_model import ThreatModel
from ironclip.evaluation.evaluate import EvaluationRequest, evaluate_suite

AS_PNG = ("not_flipped_as_png", "outside_ball_as_png")


@item(
    "ten_thousand",
    claims=[
        Claim("count", "an independent script checks 10,000 saved adversarials", at_least(10_000)),
        Claim("violations", "… over budget, out of the box, or not flipped in stock open_clip", exactly(0)),
        Claim("png", "… after a PNG round trip in stock open_clip: share that still flips (reported)", Bound(unit="%")),
        Claim("png_ball", "… after it over budget", exactly(0)),
        Claim("integer", "the 8-bit adversary's, before and after it: over budget, or not flipped", exactly(0)),
    ],
    modules=[
        *(*MODULES, "ironclip.attacks.grid", "ironclip.cli.evaluate"),
        *("acceptance.command_line", "acceptance.check_adversarials"),
    ],
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
    found = checked(run)
    count, violations = (sum(one[name] for one in found for name in names) for names in (("adversarials",), LIMITS))
    shown = f"{count:,} adversarials, {len(radii)} radii x {len(attacks)} attacks"
    yield Figure("count", None if context.short else count, shown)
    farthest = ", ".join(f"{one['eps']}: {one['largest_distance_times_255']:.6f}/255" for one in found)
    yield Figure("violations", violations if count else float("nan"), f"{violations}; farthest at {farthest}")
    back, beyond = (sum(one[name] for one in found) for name in AS_PNG)
    share = 100 * (count - back) / count if count else float("nan")
    yield Figure("png", share, f"{share:.2f} %; {back:,} of {count:,} are answered rightly again")
    yield Figure("png_ball", beyond if count else float("nan"), f"{beyond} of {count:,}")

    whole = context.work / "8-bit"
    _on_the_grid(whole, images=context.pick(2000, 48), steps=context.pick(20, 3), radii=radii)
    found = checked(whole)
    count, wrong = (sum(one[name] for one in found for name in names) for names in (("adversarials",), LIMITS + AS_PNG))
    yield Figure("integer", wrong if count else float("nan"), f"{wrong} of {count:,} adversarials")


def checked(run: Path) -> list[dict[str, Any]]:
    """Run the script on each unit of a run."""
    found = []
    for unit in json.loads((run / "run.json").read_text())["units"]:
        script = [sys.executable, "-I", str(ROOT / "acceptance" / "check_adversarials.py"), str(run), unit]
        place = ["--shards", str(SHARED / "data" / "cifar10"), "--model", str(MODEL)]
        found.append(json.loads(must(subprocess.run([*script, *place], capture_output=True, text=True)).stdout))
    return found


def _on_the_grid(run: Path, *, images: int, steps: int, radii: tuple[str, ...]) -> None:
    """Evaluate with the adversary whose images are 8-bit from the start."""
    evaluate_suite(
        EvaluationRequest(
            model=f"local-dir:{MODEL}",
            suite="natural",
            data_root=str(DATA),
            datasets=("cifar10",),
            attacks=(ATTACKS.create("pgd", {"steps": steps}),),
            threats=tuple(ThreatModel(eps=eps, integer=True) for eps in radii),
            out=run,
            limit=images,
            save="all",
            verdicts=False,
            command=("acceptance", "ten_thousand"),
        )
    )
