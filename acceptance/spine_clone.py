"""A fresh clone on a machine that has nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from acceptance import clones
from acceptance.claims import CannotRunError, Claim, Context, Figure, exactly, item
from acceptance.store import git

BUILT_FROM = ("src", "tests", "acceptance", "benchmarks", "tools", "recipes", "pyproject.toml", "constraints.txt")


def committed() -> str:
    """Return the hash of what a clone would test."""
    listed = git("ls-tree", "-r", "HEAD", "--", *BUILT_FROM, "Makefile", ".ci")
    return hashlib.sha256(listed.encode()).hexdigest()


@item(
    "fresh_clone",
    claims=[
        Claim("first", "fresh clone, `make test`, nothing else on the machine: green, with installation", exactly(0)),
        Claim("again", "… its time without installation", exactly(0)),
        Claim("ci", ".ci/run calls `make test` (1: it does)", exactly(1)),
    ],
    modules=[],
    state=committed,
)
def fresh_clone(context: Context) -> Iterator[Figure]:
    if context.short:
        raise CannotRunError("the short form installs nothing")
    head = git("rev-parse", "--short=12", "HEAD")
    with clones.fresh_clone() as clone:
        for claim, form in (("first", "with"), ("again", "without")):
            made = clone.make("test", context.work / f"{claim}.txt")
            shown = f"{made.seconds:.0f} s {form} installation: exit {made.code}, {made.last} (at {head})"
            yield Figure(claim, made.code, shown)
        lines = (clone.path / ".ci" / "run").read_text().splitlines()
        yield Figure("ci", float("make test" in (line.strip() for line in lines)))
