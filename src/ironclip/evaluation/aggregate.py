"""The figures of one unit, computed from its rows."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ironclip.errors import DataError
from ironclip.evaluation.diagnostics import Check
from ironclip.evaluation.intervals import Interval, mean_per_class_interval, wilson
from ironclip.evaluation.metrics import clean_correct, robust_correct
from ironclip.evaluation.records import SampleIds, UnitRecord
from ironclip.evaluation.unit_calibration import UnitCalibration, calibrate_rows


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What was counted over the rows of one or more units.

    Attributes:
        n: Rows.
        n_invalid: Rows in which the attack claimed a point outside its ball.
        n_near_tie: Verdicts within rounding, settled in float64.
        n_false_claims: Breaks claimed in the search precision and refused in float32.
        forwards: Forward passes of single images.
        backwards: Backward passes of single images.
        seconds: Of wall clock, summed over samples.
    """

    n: int
    n_invalid: int
    n_near_tie: int
    n_false_claims: int
    forwards: int
    backwards: int
    seconds: float

    def __add__(self, other: Totals) -> Totals:
        return Totals(**{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(Totals)})


@dataclass(frozen=True, kw_only=True)
class AggregateRow:
    """What `rows/<unit>.json` holds; shares in [0, 1].

    Attributes:
        unit: Unit id.
        n_declared: Samples that the unit was declared over.
        n_total: Size of the data set.
        coverage: `partial` while samples are missing; the intervals then hold for any outcome of these.
        clean_accuracy: Of all samples.
        robust_accuracy: Of all samples: right, and not broken.
        clean_mean_per_class: None while partial.
        robust_mean_per_class: None while partial.
        attack_success_rate: Broken among those right before; None while partial or where none was right.
        totals: Samples with a row, passes, time, oddities.
        calibration: Of the samples with a row; None where it is not defined, and in files of older versions.
        uncalibrated: Why `calibration` is None.
        verdict: `("trusted",)`, `("trusted(light)",)`, or what speaks against the row; empty where nobody has looked.
        checks: What the verdict rests on.
    """

    unit: str
    n_declared: int
    n_total: int
    coverage: Literal["complete", "partial"]
    clean_accuracy: Interval
    robust_accuracy: Interval
    clean_mean_per_class: Interval | None
    robust_mean_per_class: Interval | None
    attack_success_rate: Interval | None
    totals: Totals
    calibration: UnitCalibration | None = None
    uncalibrated: str = ""
    verdict: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()


def aggregate_rows(rows: pa.Table, record: UnitRecord) -> AggregateRow:
    """Compute the figures of a unit.

    Args:
        rows: Of `rows.SCHEMA`, each sample once.
        record: The unit.

    Raises:
        DataError: There are no rows, or some are of samples that the unit was not declared over.
    """
    labels, clean, robust = verdicts(rows, record)
    missing = n_missing(rows, record)
    n_right, n_robust = int(clean.sum()), int(robust.sum())
    complete = missing == 0
    calibration, uncalibrated = calibration_or_reason(rows, record)
    return AggregateRow(
        unit=record.unit_id,
        n_declared=record.sample_ids.count,
        n_total=record.n_total,
        coverage="complete" if complete else "partial",
        clean_accuracy=share(n_right, rows.num_rows, missing),
        robust_accuracy=share(n_robust, rows.num_rows, missing),
        clean_mean_per_class=mean_per_class_interval(clean, labels) if complete else None,
        robust_mean_per_class=mean_per_class_interval(robust, labels) if complete else None,
        attack_success_rate=wilson(n_right - n_robust, n_right) if complete and n_right else None,
        totals=totals(rows),
        calibration=calibration,
        uncalibrated=uncalibrated,
    )


def calibration_or_reason(rows: pa.Table, record: UnitRecord) -> tuple[UnitCalibration | None, str]:
    """Return the calibration of rows, or None and the reason why they have none (no logits, infinite ones)."""
    try:
        return calibrate_rows(rows, record), ""
    except DataError as error:
        return None, error.problem


def totals(rows: pa.Table) -> Totals:
    """Count over the rows, at least one."""
    return Totals(
        n=rows.num_rows,
        n_invalid=_total(rows, "invalid"),
        n_near_tie=_total(rows, "near_tie"),
        n_false_claims=_total(rows, "false_claims"),
        forwards=_total(rows, "forwards"),
        backwards=_total(rows, "backwards"),
        seconds=float(pc.sum(rows["seconds"]).as_py()),
    )


def verdicts(
    rows: pa.Table, record: UnitRecord
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return labels, right on the clean image, and right under attack too; `[N]` each.

    Raises:
        DataError: There are no rows.
    """
    if not rows.num_rows:
        raise DataError(f"unit {record.unit_id} has no rows yet.", "Evaluate it first.")
    labels, pred_clean, broken = (rows[name].to_numpy(zero_copy_only=False) for name in ("y", "pred_clean", "broken"))
    return labels, clean_correct(labels, pred_clean), robust_correct(labels, pred_clean, broken)


def n_missing(rows: pa.Table, record: UnitRecord) -> int:
    """Return how many declared samples have no row.

    Raises:
        DataError: There are rows of samples that were not declared.
    """
    declared = record.sample_ids
    if rows.num_rows < declared.count:
        return int(declared.count - rows.num_rows)
    if SampleIds.of(rows["sample_id"].to_pylist()) != declared:
        raise DataError(
            f"unit {record.unit_id} has {rows.num_rows} samples that are not the {declared.count} declared ones.",
            "Rows of another selection got into the folder: evaluate again into an empty one.",
        )
    return 0


def share(successes: int, n: int, missing: int) -> Interval:
    """Return the share among n samples, its interval wide enough for any outcome of the missing ones."""
    known = wilson(successes, n)
    if not missing:
        return known
    return Interval(known.estimate, wilson(successes, n + missing).low, wilson(successes + missing, n + missing).high)


def _total(rows: pa.Table, column: str) -> int:
    return int(pc.sum(rows[column].cast(pa.int64())).as_py())
