"""Tasks beyond classification as one self-contained HTML page and as Markdown: no script, nothing loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from ironclip.errors import ConfigError
from ironclip.evaluation.records import Session
from ironclip.evaluation.task_contrast import check_comparable
from ironclip.evaluation.task_store import TaskStore, is_task_run
from ironclip.files import write_atomically
from ironclip.report.task_gallery import Exhibit, task_gallery
from ironclip.report.task_tables import contrast_lines, task_lines

TITLES = {
    "caption": "Captions",
    "answer": "Answers",
    "targeted": "A sentence put into its mouth",
    "retrieval": "Retrieval",
    "segmentation": "Open-vocabulary masks",
}


@dataclass(frozen=True)
class Panel:
    """One run.

    Attributes:
        title: Of its task.
        model: Name of its model.
        set_: What it was evaluated on, in one line.
        game: The threat model in one line.
        attack: Its attack with settings.
        complete: Whether every image has its rows.
        head: Of the table.
        lines: Of the table.
        contrast: Against the first run of the same task: (head, lines); empty for that run.
        exhibits: Some images.
        sessions: How to run it again.
    """

    title: str
    model: str
    set_: str
    game: str
    attack: str
    complete: bool
    head: list[str]
    lines: list[list[str]]
    contrast: tuple[list[str], list[list[str]]]
    exhibits: list[Exhibit]
    sessions: tuple[Session, ...]


def build_task_report(runs: Sequence[Path], out: Path, *, title: str | None = None) -> Path:
    """Write `report.html` and `report.md` from stored rows; no model and no data set is opened.

    Args:
        runs: Folders of `ironclip eval-task`; of each task the first is what the others are compared with.
        out: Folder of the report, made if absent.
        title: Heading.

    Returns:
        Path of the page.

    Raises:
        ConfigError: One of the folders is a run of another kind, or two runs of a task are not of one game.
        DataError: A run has no rows yet.
    """
    if others := [str(run) for run in runs if not is_task_run(run)]:
        raise ConfigError(
            f"{', '.join(others)}: no run of eval-task, among others that are.", "Report the two kinds apart."
        )
    panels = _panels([TaskStore.open(run) for run in runs])
    heading = title or f"{', '.join(dict.fromkeys(panel.title for panel in panels))}: clean and under attack"
    write_atomically(out / "report.md", _markdown(panels, heading).encode())
    return write_atomically(out / "report.html", _html(panels, heading).encode())


def _panels(stores: Sequence[TaskStore]) -> list[Panel]:
    first: dict[str, TaskStore] = {}
    panels = []
    for store in stores:
        record = store.record
        against = first.setdefault(record.task, store)
        contrast: tuple[list[str], list[list[str]]] = ([], [])
        if against is not store:
            check_comparable(against.record, record)
            contrast = contrast_lines(against, store)
        head, lines = task_lines(store)
        settings = ", ".join(f"{key} {value}" for key, value in record.attack.settings.items())
        panels.append(
            Panel(
                title=TITLES[record.task],
                model=record.model.name,
                set_=f"{record.sample_ids.count:,} images of {record.title}",
                game=record.threat.caption,
                attack=f"{record.attack.title or record.attack.name}{f' ({settings})' if settings else ''}",
                complete=store.is_complete(),
                head=head,
                lines=lines,
                contrast=contrast,
                exhibits=task_gallery(store),
                sessions=record.sessions,
            )
        )
    return panels


def _html(panels: Sequence[Panel], title: str) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ironclip.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("tasks.html.j2").render(panels=panels, title=title)


def _markdown(panels: Sequence[Panel], title: str) -> str:
    blocks = [f"# {_text(title)}"]
    for panel in panels:
        partial = "" if panel.complete else " (partial)"
        blocks += [
            f"## {panel.title}: {_text(panel.model)}",
            f"`{panel.game}`",
            f"{_text(panel.set_)}{partial}. Attack: {_text(panel.attack)}. 95 % intervals.",
            _grid(panel.head, panel.lines),
        ]
        if panel.contrast[1]:
            blocks.append(_grid(*panel.contrast))
        blocks += [f"- `{session.command}` ({session.created}; {session.device})" for session in panel.sessions]
    return "\n\n".join(blocks) + "\n"


def _grid(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---", *("---:" for _ in head[1:])], *lines]
    return "\n".join(
        f"| {' | '.join(map(_text, row))} |" if row is not rows[1] else f"| {' | '.join(row)} |" for row in rows
    )


def _text(words: str) -> str:
    """Keep names from being read as markup."""
    for sign in "\\|*_<>`":
        words = words.replace(sign, f"\\{sign}")
    return words
