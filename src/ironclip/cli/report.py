"""`ironclip report`: one page of stored results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ironclip.cli.options import Json, Out
from ironclip.cli.output import say, say_json


def report_command(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders of eval; the first is compared with the others.")
    ],
    out: Out = None,
    title: Annotated[str | None, typer.Option("--title", metavar="TEXT", help="Heading of the page.")] = None,
    json: Json = False,
) -> None:
    """Write report.html and report.md from stored results.

    Opens no model and no data. The folder is runs/report unless --out is given.
    """
    from ironclip.evaluation.task_store import is_task_run
    from ironclip.report.page import build_report
    from ironclip.report.task_page import build_task_report

    build = build_task_report if any(map(is_task_run, runs)) else build_report
    page = build(runs, out or Path("runs", "report"), title=title)
    if json:
        say_json({"html": str(page), "markdown": str(page.with_suffix(".md"))})
        return
    say(f"{page}\n{page.with_suffix('.md')}")
