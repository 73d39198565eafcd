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
    "4": "a codec that leaves the graph",
    "5": "a detached path",
    "6": "dropout or batch statistics left on",
    "7": "a weak attack in place of a weak model",
}
MODULES = [
    *("ironclip.evaluation.diagnosis", "ironclip.evaluation.searches", "acceptance.named_tests"),
    *(f"ironclip.attacks.{name}" for name in ("apgd", "corners", "fgsm", "pgd", "square", "diverse")),
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
    found = named_tests.run([TESTS, "-k", "test_1 or test_2 or test_4 or test_5 or test_6 or test_7"])
    for number in MASKS:
        cases = [case for case in found if re.match(rf"test_{number}_", case.function)]
        failed = sum(case.verdict != "passed" for case in cases)
        value = float(failed) if cases else float("nan")
        yield Figure(f"mask_{number}", value, f"{failed} of {len(cases)}")


@item(
    "controls",
    claims=[
        Claim("seeds", "honest controls, robust and not: seeds tried", at_least(SEEDS)),
        Claim("flags", "… that raise a flag", exactly(0)),
    ],
    modules=MODULES,
    files=FILES,
)
def controls(context: Context) -> Iterator[Figure]:
    marks = ["-m", "not slow"] if context.short else []
    found = named_tests.run([TESTS, "-k", "honest_model", *marks])
    seeds = {case.parameters for case in found if case.parameters}
    flagged = sum(case.verdict != "passed" for case in found)
    yield Figure("seeds", None if context.short else len(seeds), f"{len(seeds)}, each half robust and not at all")
    yield Figure("flags", flagged, f"{flagged} of {len(found)} verdicts")
