"""Measure what a capability must show: `python -m acceptance.run NAME [--short] [--only WORD]`.

The whole of it: each item is measured, or its stored figures are taken where its key is that of now (store.py says
what the key holds); a table is printed as it goes, and after each item docs/acceptance/NAME.json is replaced. Whoever
is stopped goes on with the same command. `--only` measures the items whose name contains the word, anew, and stores
their figures for the next whole run; the results file is written by whole runs only. `--short` is the form for CI:
small versions, no timing beside other work, nothing stored; its results go to a temporary file.

Exit code 1 if any claim is FAIL. A claim that cannot be measured here is NOT RUN, with the reason, never PASS.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

import ironclip
from acceptance.claims import ROOT, CannotRunError, Claim, Context, Figure, Item, Result
from acceptance.store import commit, environment, key_of, needed_files, read_stored, stored_path, write_stored
from ironclip.files import write_atomically

COLOURS = {Result.PASS: "green", Result.FAIL: "bold red", Result.NOT_RUN: "yellow"}
NARROWEST = 150
"""Columns of a table in a log."""


@dataclass(frozen=True)
class Entry:
    """A claim with its verdict."""

    item: str
    claim: Claim
    figure: Figure
    seconds: float

    @property
    def result(self) -> Result:
        if self.figure.value is None:
            return Result.NOT_RUN
        return Result.PASS if self.claim.bound.holds(self.figure.value) else Result.FAIL

    @property
    def text(self) -> str:
        if self.figure.value is None or self.figure.shown:
            return self.figure.shown
        return self.claim.bound.format(self.figure.value)


class Run:
    """A run of acceptance: what has been found so far, in the order of the items.

    Args:
        name: The capability.
        items: What to measure.
        out: The results file.
        kept: Folder of stored figures and work folders, None for the short form.
        console: Where tables go.
    """

    def __init__(
        self, name: str, items: Sequence[Item], *, out: Path | None, kept: Path | None, console: Console
    ) -> None:
        self.name, self.items, self.out, self.kept, self.console = name, items, out, kept, console
        self.entries: dict[str, list[Entry]] = {item.name: _not_run(item, "not reached") for item in items}
        self.keys: dict[str, str] = {}

    def whole(self, *, anew: bool) -> list[Entry]:
        """Measure every item, or take its stored figures unless `anew`; return all entries."""
        for item in self.items:
            self.entries[item.name], note = self._one(item, anew)
            self._print(item, note)
            self._write()
        return [entry for entries in self.entries.values() for entry in entries]

    def _one(self, item: Item, anew: bool) -> tuple[list[Entry], str]:
        try:
            if self.kept is None:
                needed_files(item)
                with tempfile.TemporaryDirectory() as folder:
                    return measured(item, Context(Path(folder), short=True)), ""
            key = key_of(item)
        except CannotRunError as reason:
            return _not_run(item, str(reason)), ""
        self.keys[item.name] = key
        stored = None if anew else read_stored(self.kept, item, key)
        if stored is not None:
            found = zip(item.claims, stored.figures, stored.seconds, strict=True)
            return [Entry(item.name, *each) for each in found], f"stored: {stored.commit[:12]}, {stored.created}"
        self.console.print(f"{item.name} …", style="dim")
        entries = measured(item, Context(stored_path(self.kept, item, key).with_suffix("")))
        if _current_key(item) != key:
            return _not_run(item, "source or input changed while it was measured"), ""
        if all(entry.result is Result.PASS for entry in entries):
            # A failure is measured again the next time; what it wrote into its work folder is still there.
            write_stored(self.kept, item, key, [e.figure for e in entries], [e.seconds for e in entries])
        return entries, ""

    def _write(self) -> None:
        if self.out is None:
            return
        for item in self.items:
            if item.name in self.keys and _current_key(item) != self.keys[item.name]:
                self.entries[item.name] = _not_run(item, "source or input changed since it was measured")
        content = {
            "name": self.name,
            "commit": commit(),
            "versions": environment(),
            "items": [_row(self.name, entry) for entries in self.entries.values() for entry in entries],
        }
        write_atomically(self.out, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())

    def _print(self, item: Item, note: str) -> None:
        table = Table(box=box.SIMPLE_HEAD, title=f"{item.name}  {note}", title_justify="left", expand=True)
        for column, ratio in (("claim", 9), ("figure", 7), ("threshold", 3)):
            table.add_column(column, ratio=ratio, overflow="fold")
        table.add_column("", width=len(Result.NOT_RUN))
        table.add_column("s", justify="right", width=6)
        for entry in self.entries[item.name]:
            shown = (entry.claim.line, entry.text, str(entry.claim.bound), entry.result, f"{entry.seconds:.1f}")
            table.add_row(*shown, style=COLOURS[entry.result] if entry.result is not Result.PASS else None)
        self.console.print(table, markup=False)


def measured(item: Item, context: Context) -> list[Entry]:
    """Measure the claims of an item; what it does not come to is NOT RUN or, where it broke down, FAIL."""
    found: dict[str, tuple[Figure, float]] = {}
    missing = Figure("", float("nan"), "no figure")
    began = time.monotonic()
    try:
        for figure in item.measure(context):
            if figure.claim not in {claim.name for claim in item.claims}:
                raise LookupError(f'item {item.name} has no claim "{figure.claim}"')
            found[figure.claim] = figure, time.monotonic() - began
            began = time.monotonic()
    except CannotRunError as reason:
        missing = Figure("", None, str(reason))
    except Exception as error:  # whatever broke, these claims were not shown, and the other items can still be
        traceback.print_exc()
        missing = Figure("", float("nan"), f"{type(error).__name__}: {' '.join(str(error).split())}"[:200])
    left = time.monotonic() - began
    return [Entry(item.name, claim, *found.get(claim.name, (missing, left))) for claim in item.claims]


def _current_key(item: Item) -> str | None:
    """Return the key of now, None where what the item needs has gone."""
    try:
        return key_of(item)
    except CannotRunError:
        return None


def _not_run(item: Item, reason: str) -> list[Entry]:
    return [Entry(item.name, claim, Figure(claim.name, None, reason), 0.0) for claim in item.claims]


def _row(name: str, entry: Entry) -> dict[str, object]:
    return {
        "line": entry.claim.line,
        "figure": entry.text,
        "threshold": str(entry.claim.bound),
        "result": str(entry.result),
        "command": f"python -m acceptance.run {name} --only {entry.item}",
        "seconds": round(entry.seconds, 2),
    }


def _summary(entries: Iterable[Entry]) -> str:
    results = [entry.result for entry in entries]
    return ", ".join(f"{results.count(result)} {result}" for result in Result)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m acceptance.run", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", help="the capability, such as spine")
    parser.add_argument("--short", action="store_true", help="small versions, for CI")
    parser.add_argument("--only", metavar="WORD", help="items whose name contains the word, measured anew")
    options = parser.parse_args(arguments)
    if not Path(ironclip.__file__).is_relative_to(ROOT):
        parser.error(
            f"ironclip is imported from {ironclip.__file__}, not from here. Use: make accept NAME={options.name}"
        )
    if not (ROOT / "acceptance" / f"{options.name}.py").is_file():
        parser.error(f'nothing is claimed of "{options.name}": there is no acceptance/{options.name}.py')
    everything: tuple[Item, ...] = importlib.import_module(f"acceptance.{options.name}").ITEMS
    items = [item for item in everything if options.only is None or options.only in item.name]
    if not items:
        parser.error(f'no item is called "{options.only}"; there are: {", ".join(item.name for item in everything)}')
    console = Console()
    if not console.is_terminal:
        console = Console(width=NARROWEST)
    out: Path | None = ROOT / "docs" / "acceptance" / f"{options.name}.json"
    if options.short:
        out = Path(tempfile.mkdtemp(prefix="ironclip-acceptance-")) / f"{options.name}.json"
    elif options.only is not None:
        out = None
    kept = None if options.short else ROOT / "runs" / "acceptance" / options.name
    entries = Run(options.name, items, out=out, kept=kept, console=console).whole(anew=options.only is not None)
    console.print(f"{options.name}: {_summary(entries)}" + (f"; written to {out}" if out else ""), soft_wrap=True)
    return int(any(entry.result is Result.FAIL for entry in entries))


if __name__ == "__main__":
    sys.exit(main())
