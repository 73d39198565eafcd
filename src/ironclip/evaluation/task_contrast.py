"""Two models at one task: differences on the same images, with paired intervals over images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ironclip.errors import ConfigError, DataError
from ironclip.evaluation.intervals import Interval
from ironclip.evaluation.iou import Counts
from ironclip.evaluation.records import first_difference
from ironclip.evaluation.resampling import interval_of, mean_interval, paired_interval
from ironclip.evaluation.task_figures import DRAWS, NEAREST, Row, confusions, miou_of_draws
from ironclip.evaluation.task_store import TaskRecord

WHEN = ("clean", "attacked")
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Contrast:
    """The second model's figure minus the first's.

    Attributes:
        name: Of the figure.
        clean: Without an attack.
        attacked: Under it, each model against the adversary that attacked it.
        percent: Whether readers want it times 100.
    """

    name: str
    clean: Interval
    attacked: Interval
    percent: bool


def contrasts(
    first: TaskRecord, first_rows: Sequence[Row], second: TaskRecord, second_rows: Sequence[Row]
) -> list[Contrast]:
    """Compare two runs, figure by figure.

    Raises:
        ConfigError: They are not one task on the same images in the same game by the same attack; names what differs.
        DataError: One of them is not finished.
    """
    check_comparable(first, second)
    ours, theirs = ({str(row["sample_id"]): row for row in rows} for rows in (first_rows, second_rows))
    if not ours or ours.keys() != theirs.keys():
        raise DataError(
            f"{first.model.name} has {len(ours)} rows, {second.model.name} {len(theirs)}, of other samples.",
            "Finish both runs: the same commands go on with them.",
        )
    pairs = [(ours[key], theirs[key]) for key in sorted(ours)]
    if first.task == "segmentation":
        return [_masks(pairs, len(first.settings["class_names"]))]
    if first.task == "retrieval":
        return list(_ranks(pairs))
    column = "{}_contains" if first.task == "targeted" else "score_{}"
    clean, attacked = (
        paired_interval(*([float(pair[side][column.format(when)]) for pair in pairs] for side in (0, 1)))
        for when in WHEN
    )
    name = {"caption": "CIDEr-D x 100", "answer": "accuracy"}.get(first.task, "the sentence stands in the answer")
    return [Contrast(name, clean, attacked, first.task != "caption")]


def check_comparable(first: TaskRecord, second: TaskRecord) -> None:
    """Refuse to compare two runs of different games.

    Raises:
        ConfigError: Names the first field that differs.
    """

    def game(record: TaskRecord) -> dict[str, object]:
        return {
            "task": record.task,
            "data_fingerprint": record.data_fingerprint,
            "images": record.sample_ids.sha256,
            "threat": record.threat.hash,
            "attack": record.attack.hash,
            "settings": record.settings,
        }

    if difference := first_difference(game(first), game(second)):
        raise ConfigError(
            f"{first.model.name} and {second.model.name} cannot be compared: {difference.field} is "
            f"{difference.first!r} for the first, {difference.second!r} for the second.",
            "Evaluate both on the same images, with the same attack and radius.",
        )


def _ranks(pairs: Sequence[tuple[Row, Row]]) -> Iterator[Contrast]:
    """Compare shares of queries; captions of one image are drawn together."""
    for direction in dict.fromkeys(first["direction"] for first, _ in pairs):
        own = [pair for pair in pairs if pair[0]["direction"] == direction]
        clusters = [first["image_id"] for first, _ in own]
        for nearest in NEAREST:
            clean, attacked = (
                mean_interval(
                    [float(b[f"rank_{when}"] <= nearest) - float(a[f"rank_{when}"] <= nearest) for a, b in own],
                    clusters,
                )
                for when in WHEN
            )
            yield Contrast(f"{direction} R@{nearest}", clean, attacked, True)


def _masks(pairs: Sequence[tuple[Row, Row]], classes: int) -> Contrast:
    found = []
    for when in WHEN:
        ours, theirs = (confusions([pair[side] for pair in pairs], when, classes) for side in (0, 1))

        def difference(drawn: npt.NDArray[np.int64], ours: Counts = ours, theirs: Counts = theirs) -> Floats:
            return miou_of_draws(drawn, theirs) - miou_of_draws(drawn, ours)

        found.append(interval_of(difference, len(pairs), draws=DRAWS))
    return Contrast("mIoU", found[0], found[1], True)
