"""What users get wrong, what others made to do harm, and what nobody would write: refused in words."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

from tools.fuzz import CORPUS, PARSERS

from acceptance import named_tests
from acceptance.claims import ROOT, CannotRunError, Claim, Context, Figure, at_least, exactly, item
from acceptance.command_line import environment

MISTAKES = "tests/cli/test_mistakes.py"
HOSTILE = ("tests/cli/test_hostile.py", "tests/models/test_weights.py")
COMMANDS = ("ironclip.cli.app", "ironclip.training.engine", "ironclip.evaluation.evaluate", "ironclip.report.page")
FILES = ("tests/conftest.py", "tests/made_up_*.py", "tests/cli/conftest.py")
MINUTES = 30.0


def not_passed(cases: list[named_tests.Case]) -> list[str]:
    return [f"{case.function}[{case.parameters}]" for case in cases if case.verdict != "passed"]


@item(
    "mistakes",
    claims=[
        Claim(
            "refused", "catalogued mistakes refused without a traceback, in a line that names the value", at_least(100)
        ),
        Claim("wrong", "catalogued mistakes that are not", exactly(0)),
        Claim("distinct", "the messages differ from each other (tests that fail)", exactly(0)),
    ],
    modules=["acceptance.named_tests", *COMMANDS],
    files=(MISTAKES, "tests/mistakes/*", *FILES),
)
def mistakes(context: Context) -> Iterator[Figure]:
    """Make every mistake of the catalogue; each message is also held to the stored one."""
    if context.short:
        raise CannotRunError("the tests of CI are the same")
    cases = named_tests.run([MISTAKES])
    made = [case for case in cases if case.function == "test_mistake"]
    wrong = not_passed(made)
    yield Figure("refused", len(made) - len(wrong), f"{len(made) - len(wrong)} of {len(made)}")
    yield Figure("wrong", len(wrong), "; ".join(wrong)[:200])
    others = [case for case in cases if case.function == "test_there_are_a_hundred_and_their_messages_differ"]
    yield Figure("distinct", len(not_passed(others)) if others else float("nan"), f"{len(made)} messages compared")


@item(
    "hostile",
    claims=[
        Claim("refused", "hostile inputs refused with nothing written outside the run folder", at_least(40)),
        Claim("wrong", "hostile inputs that are not", exactly(0)),
    ],
    modules=["acceptance.named_tests", *COMMANDS],
    files=(*HOSTILE, "tests/models/conftest.py", *FILES),
)
def hostile(context: Context) -> Iterator[Figure]:
    """Feed the commands pickles, bombs, climbing paths, tags and markup."""
    if context.short:
        raise CannotRunError("the tests of CI are the same")
    cases = named_tests.run(HOSTILE)
    wrong = not_passed(cases)
    yield Figure("refused", len(cases) - len(wrong), f"{len(cases) - len(wrong)} of {len(cases)}")
    yield Figure("wrong", len(wrong), "; ".join(wrong)[:200])


@item(
    "fuzz",
    claims=[
        Claim("minutes", "fuzzing of the recipe parser and the shard reader", at_least(MINUTES, "min")),
        Claim("crashes", "… parsers that crashed", exactly(0)),
        *(Claim(name, f"… lines of the {name} parser reached (share)", at_least(0.9)) for name in sorted(PARSERS)),
        Claim("corpus", "… inputs kept with the tests, which try them every time", at_least(20)),
    ],
    modules=["ironclip.plain_yaml", "ironclip.training.recipe", "ironclip.data.wds"],
    files=("tools/fuzz.py", "tests/corpus/*/*"),
)
def fuzzed(context: Context) -> Iterator[Figure]:
    """Go on from the stored corpus in a process of its own; what is found lies in the work folder."""
    corpus = context.work / "corpus"
    shutil.copytree(CORPUS, corpus, dirs_exist_ok=True)
    command = [sys.executable, ROOT / "tools" / "fuzz.py", "--minutes", context.pick(MINUTES, 0.05), "--corpus", corpus]
    began = time.monotonic()
    done = subprocess.run([str(word) for word in command], cwd=ROOT, env=environment(), capture_output=True, text=True)
    minutes = (time.monotonic() - began) / 60
    found = {one["parser"]: one for one in map(json.loads, done.stdout.splitlines())}
    if context.short:
        yield Figure("minutes", None, "the short form takes seconds")
    else:
        yield Figure("minutes", minutes, f"{minutes:.1f} min, {sum(one['inputs'] for one in found.values())} inputs")
    crashes = [f"{name}: {found[name]['crash'] if name in found else done.stderr[-100:]}" for name in sorted(PARSERS)]
    crashes = [line for line in crashes if not line.endswith(": None")]
    yield Figure("crashes", len(crashes), "; ".join(crashes) or "none")
    for name in sorted(found):
        one = found[name]
        shown = f"{100 * one['reached']:.1f} % of {one['lines']}; not {', '.join(one['missing'])}"
        yield Figure(name, one["reached"], shown[:200])
    yield Figure("corpus", sum(1 for path in CORPUS.glob("*/*") if path.is_file()))
