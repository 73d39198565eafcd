"""Rows of several attacks become the confidence of a model under the worst of them, and its row of a table.

Several attacks of one game are joined as in the tables of accuracy: each image is judged as the attack left it that
broke it or, where none did, that brought it nearest to a mistake.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ironclip.evaluation.intervals import Interval
from ironclip.evaluation.unit_calibration import UnitCalibration, ViewCalibration, ViewUncertainty
from ironclip.report.results import DatasetTable
from ironclip.report.wording import bounds, percent

HEAD = ("", "right", "confidence", "calibration error", "NLL", "Brier", "entropy", "expected", "information", "noticed")


@dataclass(frozen=True)
class Line:
    """A line of the table: one model, on clean images or at one budget; `cells` follow `HEAD` after its first entry."""

    model: int
    label: str
    cells: tuple[str, ...]


def hardest(units: Sequence[pa.Table]) -> pa.Table:
    """Return for each sample that all attacks judged the row of the attack that did most.

    Args:
        units: Rows of one game, an attack each, each sample once; at least one.
    """
    if len(units) == 1:
        return units[0]
    shared = set.intersection(*(set(unit["sample_id"].to_pylist()) for unit in units))
    every = pa.concat_tables(units)
    every = every.filter(pc.is_in(every["sample_id"], pa.array(sorted(shared), pa.string())))
    ids, broken, margin = (every[name].to_numpy(zero_copy_only=False) for name in ("sample_id", "broken", "margin_adv"))
    order = np.lexsort((margin, ~broken, ids.astype(str)))
    _, first = np.unique(ids[order].astype(str), return_index=True)
    return every.take(pa.array(order[first]))


def confidence_lines(table: DatasetTable) -> list[Line]:
    """Return the lines of a data set's table of confidence, model by model: clean, then each budget."""
    lines = []
    for model in range(len(table.clean)):
        found = [(budget, row[model]) for budget, row in zip(table.budgets, table.calibration, strict=True)]
        first = next((one for _, one in found if one), None)
        if first:
            lines.append(Line(model, "clean", (*_cells(first.clean, first.clean_uncertainty), "")))
        for budget, one in found:
            if one:
                label = f"{'L2 ' if budget.norm == 'l2' else ''}ε = {budget.eps}"
                noticed = _share(one.attacked_auroc["doubt"])
                lines.append(Line(model, label, (*_cells(one.adv, one.adv_uncertainty), noticed)))
    return lines


def reading(tables: Sequence[DatasetTable]) -> list[tuple[str, str]]:
    """Return the columns of the tables with their meanings; nothing where no table has a line."""
    maps = sorted({one.alpha_map for table in tables for row in table.calibration for one in row if one})
    if not maps:
        return []
    return [
        ("confidence", "Mean probability that the model gives to its own answer; it should equal the share right."),
        (
            "calibration error",
            "Mean distance between confidence and share right in 15 bins of equal width, points (ECE; a confidence on "
            "the edge of two bins belongs to the lower one).",
        ),
        ("NLL, Brier", "Penalties for probability on wrong classes, nats and 0 to 2; lower is better."),
        (
            "entropy, expected, information",
            "Percent of the largest possible entropy: of the probabilities; the part that no further evidence would "
            f"remove; the part that it would (Dirichlet, concentrations by {', '.join(maps)}).",
        ),
        (
            "noticed",
            "How often an attacked image leaves the model less sure than a clean one, percent (AUROC of 1 less "
            "confidence): 50 is blind, below it the model is surer under attack.",
        ),
        (
            "under attack",
            "An attack stops at the first mistake that it finds, so these answers are barely wrong. An adversary who "
            "went on could make the model surer of them: errors of calibration under attack are lower bounds, and "
            "attacked images are easier to notice here than they need be.",
        ),
    ]


def missing(table: DatasetTable, names: Sequence[str]) -> list[str]:
    """Say which models have no table of confidence and why."""
    return [f"{names[model]}: {reason}" for model, reason in table.uncalibrated.items()]


def reference(table: DatasetTable, model: int) -> UnitCalibration | None:
    """Return the confidence of a model at the budget in the middle."""
    return table.calibration[table.reference][model] if table.calibration else None


def _cells(view: ViewCalibration, uncertainty: ViewUncertainty) -> tuple[str, ...]:
    return (
        percent(view.accuracy),
        percent(view.confidence),
        _share(view.ece),
        _number(view.nll),
        _number(view.brier),
        percent(uncertainty.entropy.estimate),
        percent(uncertainty.expected_entropy.estimate),
        f"{100 * uncertainty.mutual_information.estimate:.2g}",
    )


def _share(interval: Interval) -> str:
    return f"{percent(interval.estimate)} {bounds(interval.low, interval.high)}"


def _number(interval: Interval) -> str:
    return f"{interval.estimate:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
