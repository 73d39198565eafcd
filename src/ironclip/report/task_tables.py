"""The figures of a task as lines of text: what the command line prints and what the page shows."""

from __future__ import annotations

from ironclip.evaluation.intervals import Interval
from ironclip.evaluation.pope import Pope
from ironclip.evaluation.success import SuccessRate
from ironclip.evaluation.task_contrast import contrasts
from ironclip.evaluation.task_figures import Figure, task_figures
from ironclip.evaluation.task_store import TaskStore
from ironclip.report.wording import bounds, points, share

HEAD = ("", "clean", "attacked", "change")


def task_lines(store: TaskStore) -> tuple[list[str], list[list[str]]]:
    """Return a head and lines: each figure clean, attacked and the paired change, with 95 % intervals; then rates.

    Raises:
        DataError: The run has no rows yet.
    """
    found = task_figures(store.record, store.rows())
    lines = [_line(figure) for figure in found.figures]
    lines += [[name, "", _rate(rate), ""] for name, rate in (found.success or {}).items()]
    if found.pope is not None:
        lines += _pope_lines(*found.pope)
    return list(HEAD), lines


def contrast_lines(first: TaskStore, second: TaskStore) -> tuple[list[str], list[list[str]]]:
    """Return a head and lines: the second run's figures minus the first's, paired, with 95 % intervals."""
    found = contrasts(first.record, first.rows(), second.record, second.rows())
    head = [f"minus {first.record.model.name}", "clean", "attacked"]
    return head, [[one.name, *(_difference(side, one.percent) for side in (one.clean, one.attacked))] for one in found]


def _line(figure: Figure) -> list[str]:
    sides = (_number(one, figure.percent) for one in (figure.clean, figure.attacked))
    return [figure.name, *sides, _difference(figure.change, figure.percent)]


def _number(found: Interval, percent: bool) -> str:
    return share(found) if percent else f"{found.estimate:.1f} [{found.low:.1f}, {found.high:.1f}]"


def _difference(found: Interval, percent: bool) -> str:
    """Write a difference, signed; of shares in points."""
    # `points` and `bounds` write hundredths of what they are given.
    scale = 1 if percent else 0.01
    return f"{points(scale * found.estimate)} {bounds(scale * found.low, scale * found.high)}"


def _rate(rate: SuccessRate) -> str:
    if not rate.denominator:
        return f"undefined: all {rate.excluded} are so without an attack"
    return f"{share(rate.share)} of {rate.denominator}"


def _pope_lines(clean: Pope, attacked: Pope) -> list[list[str]]:
    return [
        [f"POPE {name.replace('_', ' ')}", *(_share(getattr(one, name)) for one in (clean, attacked)), ""]
        for name in ("accuracy", "precision", "recall", "f1", "yes_ratio")
    ]


def _share(value: float | None) -> str:
    return "of nothing" if value is None else f"{100 * value:.1f}"
