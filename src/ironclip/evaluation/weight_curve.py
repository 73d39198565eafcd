"""The curve of clean against robust accuracy over the weights between a run's original and its result.

Each point is an evaluation of its own, in a folder of its own: it goes on where it stopped, and a report over all of
these folders joins the points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ironclip.errors import ConfigError
from ironclip.evaluation.evaluate import EvaluationProgress, EvaluationRequest, evaluate_suite
from ironclip.evaluation.intervals import Interval
from ironclip.models.interpolation import check_robust_weight

WEIGHTS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True, kw_only=True)
class CurveRow:
    """One point of the curve of one data set, threat model and attack.

    Attributes:
        robust_weight: 0 is the original, 1 the run's result.
        dataset: Its name in the suite.
        threat: The adversary's game, in words.
        attack: Label of the attack.
        clean_accuracy: Of all samples.
        robust_accuracy: Of all samples: right, and not broken.
        n: Samples with a verdict.
        run: Folder of the point's rows.
    """

    robust_weight: float
    dataset: str
    threat: str
    attack: str
    clean_accuracy: Interval
    robust_accuracy: Interval
    n: int
    run: Path


def weight_curve(
    request: EvaluationRequest,
    weights: Sequence[float] = WEIGHTS,
    *,
    progress: Callable[[EvaluationProgress], None] | None = None,
) -> list[CurveRow]:
    """Evaluate weights between a run's original and its result, one after the other.

    Args:
        request: What to evaluate; its model is the folder of a training run, `run:` before it or not. The points are
            stored below `out`, as `weight-W`.
        weights: Shares of the robust model, in [0, 1].
        progress: As in `evaluate_suite`.

    Returns:
        Rows by weight; of one weight in the order of its units.

    Raises:
        ConfigError: The model is no run, or one of prompts or adapters; or there are no weights.
        ValueRangeError: A weight is outside [0, 1].
        DataError, ResumeError: See `evaluate_suite`.
    """
    folder = Path(request.model.removeprefix("run:"))
    if not (folder / "run.json").is_file():
        raise ConfigError(f"{request.model} is no training run, so its original is not known.", "Give a run's folder.")
    if not weights:
        raise ConfigError("a curve without weights.", "Give some from 0 to 1.")
    for weight in weights:
        check_robust_weight(weight)
    rows: list[CurveRow] = []
    for weight in sorted(set(map(float, weights))):
        point = replace(
            request,
            model=f"run:{folder}?robust_weight={weight}",
            name=f"{request.name or folder.name}, robust weight {weight:g}",
            out=request.out / f"weight-{weight:g}",
        )
        store = evaluate_suite(point, progress=progress)
        for unit in store.units():
            record, figures = store.record(unit), store.aggregate(unit)
            rows.append(
                CurveRow(
                    robust_weight=weight,
                    dataset=record.dataset,
                    threat=record.threat.caption,
                    attack=record.attack.label,
                    clean_accuracy=figures.clean_accuracy,
                    robust_accuracy=figures.robust_accuracy,
                    n=figures.totals.n,
                    run=store.path,
                )
            )
    return rows
