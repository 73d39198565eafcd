"""Every registered method against the contract of methods, and every planted defect against its test."""

from __future__ import annotations

from collections.abc import Iterator

from tools.defects import defects

from acceptance import named_tests
from acceptance.claims import CannotRunError, Claim, Context, Figure, exactly, item
from ironclip.methods.base import METHODS

CONTRACT = "tests/methods/test_registry_contract.py"
MATRIX = {
    "floor": (
        "on one batch the loss above the method's own floor falls below 0.9 of the first in 20 steps",
        "test_loss_above_its_floor_falls_on_one_batch",
    ),
    "declared": (
        "only the declared part changes, and the teacher's hash does not",
        "test_tunes_what_it_declares_and_nothing_else",
    ),
    "resume": ("stopped and resumed, bit for bit", "test_a_run_that_is_stopped_and_resumed_is_the_straight_one"),
    "reload": ("saved and loaded, equal logits", "test_a_saved_model_comes_back_with_equal_logits"),
    "classes": ("2, 3, 10 and 200 classes", "test_any_number_of_classes"),
    "one image": ("a batch of one image has a finite loss", "test_a_batch_of_one_image"),
}
MODULES = tuple(sorted({METHODS.get(name).__module__ for name in METHODS}))
TESTS = ("tests/conftest.py", "tests/floors.py", "tests/made_up_*.py", "tests/methods/*.py", "tests/oracles/*.py")


@item(
    "matrix",
    claims=[
        Claim(name, f"every registered method: {line} (methods that fail)", exactly(0))
        for name, (line, _) in MATRIX.items()
    ],
    modules=["acceptance.named_tests", *MODULES, "ironclip.training.engine"],
    files=TESTS,
)
def matrix(context: Context) -> Iterator[Figure]:
    """Run the contract's tests; a method without a passed case counts as failed, so none is left out by a filter."""
    if context.short:
        raise CannotRunError("the tests of CI are the same")
    cases = named_tests.run([CONTRACT])
    names = METHODS.names()
    for claim, (_, function) in MATRIX.items():
        own = [case for case in cases if case.function == function]
        wrong = [name for name in names if not _holds([case for case in own if case.concerns(name)])]
        shown = f"{len(names) - len(wrong)} of {len(names)} methods, {len(own)} cases"
        yield Figure(claim, len(wrong), "; ".join([shown, *wrong]))


def _holds(cases: list[named_tests.Case]) -> bool:
    return bool(cases) and all(case.verdict == "passed" for case in cases)


@item(
    "defects",
    claims=[
        Claim("reasons", "defects of published code with neither a test nor a reason why not", exactly(0)),
        *(Claim(one.name, f"{one.name}: {one.what} (tests that fail)", exactly(0)) for one in defects()),
    ],
    modules=["acceptance.named_tests", "tools.defects", "ironclip.training.engine", *MODULES],
    files=(*TESTS, "tests/defects.yaml", "tests/training/*.py"),
)
def planted(context: Context) -> Iterator[Figure]:
    """Run the tests that are named for a defect: each asserts that ours passes its check and a planted copy not."""
    if context.short:
        raise CannotRunError("the tests of CI are the same")
    table = defects()
    missing = [one.name for one in table if not one.tests and not one.cannot]
    yield Figure("reasons", len(missing), ", ".join(missing) or f"none of {len(table)}")
    cases = named_tests.run(sorted({test for one in table for test in one.tests}))
    for one in table:
        own = [case for case in cases if f"{case.path}::{case.function}" in one.tests]
        wrong = [f"{case.function}[{case.parameters}]" for case in own if case.verdict != "passed"]
        if own:
            named = dict.fromkeys(test.partition("::")[2] for test in one.tests)
            yield Figure(one.name, len(wrong), "; ".join(wrong) or f"{len(own)} passed: {', '.join(named)}"[:200])
        else:
            yield Figure(one.name, None, f"not expressible: {one.cannot}" if one.cannot else "no test yet")
