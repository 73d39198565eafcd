"""A LLaVA folder in the hub's layout: its loss, its tower, and the folder that export writes."""

from __future__ import annotations

from collections.abc import Iterator

from acceptance import named_tests
from acceptance.claims import Claim, Context, Figure, exactly, item

LLAVA, EXPORT = "tests/models/test_llava.py", "tests/models/test_llava_export.py"
SHOWN = {
    "loss": (
        "`loss` is transformers' own label loss to 1e-5",
        f"{LLAVA}::test_the_loss_is_transformers_own_whatever_stands_beside_a_row",
    ),
    "swap": (
        "a swap of the tower changes tower weights only, and comes off again",
        f"{LLAVA}::test_another_tower_changes_tower_weights_only_and_comes_off_again",
    ),
    "resolution": (
        "another resolution is refused until it is promised",
        f"{LLAVA}::test_another_resolution_is_refused_until_it_is_promised",
    ),
    "export": (
        "an exported folder differs in tower weights only",
        f"{EXPORT}::test_only_the_towers_weights_have_changed",
    ),
    "refused": (
        "export refuses another resolution or architecture",
        f"{EXPORT}::test_what_does_not_fit_is_refused_before_anything_is_written",
    ),
}


@item(
    "llava",
    claims=[Claim(name, f"LLaVA: {line}; tests that fail", exactly(0)) for name, (line, _) in SHOWN.items()],
    modules=("ironclip.models.llava", "ironclip.models.llava_export", "acceptance.named_tests"),
    files=(LLAVA, EXPORT, "tests/made_up_llava.py", "tests/conftest.py"),
)
def llava(context: Context) -> Iterator[Figure]:
    for name, (_, node) in SHOWN.items():
        found = named_tests.run([node])
        failed = sum(case.verdict != "passed" for case in found)
        yield Figure(name, failed if found else float("nan"), f"{failed} of {len(found)}")
