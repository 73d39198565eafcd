"""What a training run has logged so far, as curves: read from its folder, also while it is being written."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ironclip.errors import DataError

Points = list[tuple[float, float]]

POINTS = 300
"""A curve has no more of them; of longer ones, means of neighbours are shown."""

# What a step logs beside the loss and its terms.
_BESIDE = {"step", "epoch", "lr", "loss", "gradient_norm", "images_per_second", "clean_accuracy", "attack_accuracy"}


@dataclass(frozen=True)
class TrainingLog:
    """A run so far.

    Attributes:
        record: run.json.
        steps: What was logged of each step, in order.
        validations: What was logged of each validation on held-out images, with its step.
        complete: Whether the run has come to its end.
        written: When the log was last written, seconds since 1970.
    """

    record: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]
    validations: Sequence[Mapping[str, Any]]
    complete: bool
    written: float

    @property
    def step(self) -> int:
        """The last step that was logged, 0 before the first."""
        return int(self.steps[-1]["step"]) if self.steps else 0

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return int(self.record["steps"])

    @property
    def rate(self) -> float | None:
        """Images a second, since the run began or was resumed; None before the first step."""
        return self.steps[-1].get("images_per_second") if self.steps else None

    @property
    def seconds_left(self) -> float | None:
        """At that rate; None where it is not known."""
        batch = self.record["recipe"]["optimisation"]["batch_size"]
        return (self.total - self.step) * batch / self.rate if self.rate else None

    @property
    def skipped(self) -> int:
        """Steps whose loss was not finite, which changed nothing."""
        return sum(entry.get("loss") is None for entry in self.steps)

    @property
    def terms(self) -> list[str]:
        """Names of the terms of the loss; none where it has only one, which is the loss."""
        found = dict.fromkeys(name for entry in self.steps for name in entry if name not in _BESIDE)
        return list(found) if len(found) > 1 else []

    def curve(self, name: str) -> Points:
        """Return a figure of the training steps over the steps."""
        return thinned(_points(self.steps, name))

    def held_out(self, name: str) -> Points:
        """Return a figure of the validations over the steps."""
        return thinned(_points(self.validations, name))


def read_training_log(run: Path) -> TrainingLog:
    """Read what a training run has logged.

    Raises:
        DataError: The folder is no training run, or its files are damaged.
    """
    if not (run / "run.json").is_file():
        raise DataError(f"{run} is no training run: it has no run.json.", "Give a folder that ironclip train wrote.")
    try:
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{run}/run.json is not JSON: {error}.", "Restore it, or train anew.") from None
    if not isinstance(record, dict) or not {"recipe", "steps", "threat_caption"} <= record.keys():
        raise DataError(f"{run} is a run, but not of training.", "Give a folder that ironclip train wrote.")
    log = run / "log.jsonl"
    steps, validations = [], []
    for entry in _entries(log):
        if "validation" in entry:
            validations.append({"step": entry["step"], **entry["validation"]})
        else:
            steps.append(entry)
    written = (log if log.exists() else run / "run.json").stat().st_mtime
    return TrainingLog(record, steps, validations, (run / "result.json").is_file(), written)


def thinned(points: Points) -> Points:
    """Return at most `POINTS` points: of many, the means of neighbours."""
    size = math.ceil(len(points) / POINTS)
    if size <= 1:
        return points
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _entries(log: Path) -> Iterable[dict[str, Any]]:
    if not log.exists():
        return
    for number, line in enumerate(log.read_text(encoding="utf-8").splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            return  # still being written
        try:
            yield json.loads(line)
        except ValueError:
            raise DataError(
                f"line {number} of {log} is not JSON.", "Go on with the run, which mends its log, or remove the line."
            ) from None


def _points(entries: Sequence[Mapping[str, Any]], name: str) -> Points:
    """Take what was logged; a figure that was not finite is null and leaves a gap of one point."""
    return [(float(entry["step"]), float(entry[name])) for entry in entries if entry.get(name) is not None]
