"""Models that hide their gradients raise the flags named in the plan, and honest ones raise none."""

from __future__ import annotations

import re
from collections.abc import Iterator

from acceptance import named_tests
from acceptance.claims import Claim, Context, Figure, at_least, exactly, item

TESTS = "tests/evaluation/test_diagnosis.py"
MASKS = {
    "1": "quantised input",
    "2": "saturated logits, and probabilities in their place",
    "3": "random sizes, places and noise",
    "4": "a codec that leaves the graph",
    "5": "a detached path",
    "6": "dropout or batch statistics left on",
    "7": "a weak attack in place of a weak model",
}
MODULES = [
    *(f"ironclip.evaluation.{name}" for name in ("diagnosis", "searches", "specialised")),
    *(f"ironclip.attacks.{name}" for name in ("apgd", "corners", "diverse", "expectation", "fgsm", "pgd", "square")),
    *("ironclip.models.randomised", "ironclip.models.straight_through", "acceptance.named_tests"),
]
FILES = [TESTS, "tests/made_up_masks.py", "tests/made_up_images.py"]
SEEDS = 20


@item(
    "masked_models",
    claims=[
        Claim(f"mask_{number}", f"planted model {number} of 3.2, {words}: tests of its flags that fail", exactly(0))
        for number, words in MASKS.items()
    ],
    modules=MODULES,
    files=FILES,
)
def masked_models(context: Context) -> Iterator[Figure]:
    found = named_tests.run([TESTS, "-k", " or ".join(f"test_{number}" for number in MASKS)])
    for number in MASKS:
        cases = [case for case in found if re.match(rf"test_{number}_", case.function)]
        failed = sum(case.verdict != "passed" for case in cases)
        value = float(failed) if cases else float("nan")
        yield Figure(f"mask_{number}", value, f"{failed} of {len(cases)}")


@item(
    "controls",
    claims=[
        Claim("seeds", "honest controls, robust and not: seeds tried, none looked at for a threshold", at_least(SEEDS)),
        Claim("flags", "… that raise a flag", exactly(0)),
    ],
    modules=MODULES,
    files=FILES,
)
def controls(context: Context) -> Iterator[Figure]:
    """Which seeds thresholds were looked at on is in docs/decisions/012-controls-shown.md."""
    marks = ["-m", "not slow"] if context.short else []
    found = named_tests.run([TESTS, "-k", "honest_model", *marks])
    seeds = {case.parameters for case in found if case.parameters}
    flagged = sum(case.verdict != "passed" for case in found)
    shown = f"{len(seeds)}, of {min(seeds, default='')} to {max(seeds, default='')}, each half robust and not at all"
    yield Figure("seeds", None if context.short else len(seeds), shown)
    yield Figure("flags", flagged, f"{flagged} of {len(found)} verdicts")
