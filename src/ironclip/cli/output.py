"""What commands print: results on standard output; progress, warnings and errors on standard error."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Sequence
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

QUIET_SECONDS = 30.0
"""Without a terminal, a line of progress so often."""


def tell_error(problem: str, remedy: str) -> None:
    """Print what is wrong and what to do about it."""
    tell(f"Error: {problem}")
    if remedy:
        tell(remedy)


def tell(text: str) -> None:
    """Print to standard error, above a running progress bar."""
    _stderr().print(_harmless(text), markup=False, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print to standard output."""
    typer.echo(_harmless(text))


def say_json(value: Any) -> None:
    """Print a result for programs."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def say_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: as wide as its content, so that it can be cut and searched like any text."""
    widths = [max(len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
    for line in [columns, ["-" * width for width in widths], *rows]:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def start_logging(*, debug: bool) -> None:
    """Show what the library logs: warnings, with --debug everything."""
    logger = logging.getLogger("ironclip")
    logger.setLevel(logging.DEBUG if debug else logging.WARNING)
    logger.handlers[:] = [_ToStderr()]


class _ToStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tell(f"{record.levelname.lower()}: {record.getMessage()}")


def _harmless(text: str) -> str:
    """Show signs that would steer the terminal instead of sending them: names come from other people's files."""
    return _STEERING.sub(lambda sign: f"\\x{ord(sign[0]):02x}", text)


class Display:
    """How far long work is: a bar on a terminal, elsewhere a line every 30 s and one at the end of each task."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._told = time.monotonic()

    def __enter__(self) -> Self:
        if _stderr().is_terminal:
            from rich import progress

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}", markup=False),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[status]}", markup=False),
                progress.TimeRemainingColumn(),
                console=_stderr(),
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if kind is KeyboardInterrupt:
            tell("Interrupted. The same command goes on where it stopped.")

    def update(self, task: str, done: int, total: int, status: str) -> None:
        """Say that `done` of `total` are done, and what is known so far."""
        if self._bar is not None:
            if task not in self._tasks:
                self._tasks[task] = self._bar.add_task(task, total=total, status=status)
            self._bar.update(self._tasks[task], completed=done, total=total, status=status)
        elif done == total or time.monotonic() - self._told >= QUIET_SECONDS:
            self._told = time.monotonic()
            tell(f"{task}: {done}/{total}, {status}")


@cache
def _stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True)
