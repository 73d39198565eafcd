"""Defects of published code, and the tests that catch them: the table of docs/defects.md."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "tests" / "defects.yaml"
PAGE = ROOT / "docs" / "defects.md"
_NAMED = re.compile(r"test_d(\d\d)_")


@dataclass(frozen=True)
class Defect:
    """One of them.

    Attributes:
        number: As in the methods plan.
        what: Was wrong.
        where: It was seen.
        then: What came of it.
        cannot: Why our design has no place for it; None where it has.
        tests: `path::function` of the tests that pass ours and fail a planted copy.
    """

    number: int
    what: str
    where: str
    then: str
    cannot: str | None
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        """As the plan calls it."""
        return f"D{self.number}"


def defects() -> list[Defect]:
    """Read the table, with the tests that there are."""
    tests: dict[int, list[str]] = defaultdict(list)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for function in functions(path):
            if named := _NAMED.match(function):
                tests[int(named[1])].append(f"{path.relative_to(ROOT)}::{function}")
    content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return [
        Defect(
            number := int(name.removeprefix("D")),
            entry["what"],
            entry["where"],
            entry["then"],
            entry.get("cannot"),
            tuple(tests[number]),
        )
        for name, entry in content.items()
    ]


def functions(path: Path) -> Iterator[str]:
    """Yield the names of the functions of a file."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            yield node.name


def table() -> str:
    """Return the table as Markdown."""
    lines = ["| | what was wrong | seen in | so | caught by |", "|---|---|---|---|---|"]
    for defect in defects():
        files = dict.fromkeys(test.partition("::")[0] for test in defect.tests)
        tests = [
            f"`{file}`: "
            + ", ".join(f"`{test.partition('::')[2]}`" for test in defect.tests if test.startswith(f"{file}:"))
            for file in files
        ]
        caught = "; ".join(tests) or (f"not expressible: {defect.cannot}" if defect.cannot else "no test yet")
        lines.append(f"| {defect.name} | {defect.what} | {defect.where} | {defect.then} | {caught} |")
    return "\n".join(lines)
