"""What the stored rows of a task come to: figures with intervals, from rows alone."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ironclip.errors import DataError
from ironclip.evaluation.intervals import Interval
from ironclip.evaluation.iou import Counts, confusion, mean_iou
from ironclip.evaluation.pope import Pope, pope
from ironclip.evaluation.resampling import interval_of, mean_interval, paired_interval, score_interval
from ironclip.evaluation.retrieval import clustered_share
from ironclip.evaluation.success import SuccessRate, success_rate
from ironclip.evaluation.task_store import TaskRecord
from ironclip.evaluation.vqa import normalise_answer

NEAREST = (1, 5, 10)
DRAWS = 1000
"""Of images with masks: each draw adds up their confusions."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """A number before and under attack, on the same images.

    Attributes:
        name: "CIDEr-D x 100", "accuracy", "image to text R@1", "mIoU".
        clean: Without an attack.
        attacked: Under it.
        change: Attacked minus clean, paired.
        percent: Whether readers want it times 100 with a percent sign.
    """

    name: str
    clean: Interval
    attacked: Interval
    change: Interval
    percent: bool


@dataclass(frozen=True)
class TaskFigures:
    """All figures of a run.

    Attributes:
        images: How many have rows, of those declared.
        declared: How many were declared.
        figures: Before and under attack.
        success: By what counts as one: how often the attack came to its goal.
        pope: Clean and attacked, where all answers are yes or no.
    """

    images: int
    declared: int
    figures: tuple[Figure, ...] = ()
    success: Mapping[str, SuccessRate] | None = None
    pope: tuple[Pope, Pope] | None = None


def task_figures(record: TaskRecord, rows: Sequence[Row]) -> TaskFigures:
    """Compute the figures of a run from its rows.

    Raises:
        DataError: It has no rows yet.
    """
    if not rows:
        raise DataError(f"{record.title} has no rows yet.", "Finish the run: the same command goes on with it.")
    images = len({row["image_id"] for row in rows})
    declared = record.sample_ids.count
    if record.task == "targeted":
        return TaskFigures(images, declared, success=_spoken(rows))
    if record.task == "retrieval":
        return TaskFigures(images, declared, _ranked(rows))
    if record.task == "segmentation":
        return TaskFigures(images, declared, (_masked(rows, len(record.settings["class_names"])),))
    is_answer = record.task == "answer"
    clean, attacked = ([row[f"score_{when}"] for row in rows] for when in ("clean", "attacked"))
    name = "accuracy" if is_answer else "CIDEr-D x 100"
    figure = Figure(name, score_interval(clean), score_interval(attacked), paired_interval(clean, attacked), is_answer)
    if not is_answer:
        return TaskFigures(images, declared, (figure,))
    broken = success_rate([score <= 0 for score in clean], [score <= 0 for score in attacked])
    return TaskFigures(images, declared, (figure,), {"answer made wrong": broken}, _pope(rows))


def _spoken(rows: Sequence[Row]) -> dict[str, SuccessRate]:
    words = {"contains": "the sentence stands in the answer", "begins": "the answer begins with it",
             "equals": "the answer is it"}  # fmt: skip
    found = {}
    for when, suffix in (("attacked", ""), ("rounded", ", in 8 bits")):
        for how, text in words.items():
            before = [row[f"clean_{how}"] for row in rows]
            found[text + suffix] = success_rate(before, [row[f"{when}_{how}"] for row in rows])
    return found


def _pope(rows: Sequence[Row]) -> tuple[Pope, Pope] | None:
    truth = [{normalise_answer(text) for text in row["references"]} for row in rows]
    if not all(answers in ({"yes"}, {"no"}) for answers in truth):
        return None
    real = [answers == {"yes"} for answers in truth]
    return pope([row["text_clean"] for row in rows], real), pope([row["text_attacked"] for row in rows], real)


def _ranked(rows: Sequence[Row]) -> tuple[Figure, ...]:
    found = []
    for direction in dict.fromkeys(row["direction"] for row in rows):
        own = [row for row in rows if row["direction"] == direction]
        places = {name: at for at, name in enumerate(dict.fromkeys(row["image_id"] for row in own))}
        clusters = np.array([places[row["image_id"]] for row in own])
        for nearest in NEAREST:
            clean, attacked = (
                np.array([row[f"rank_{when}"] for row in own]) <= nearest for when in ("clean", "attacked")
            )
            change = mean_interval(attacked.astype(float) - clean.astype(float), clusters.tolist())
            before, after = clustered_share(clean, clusters), clustered_share(attacked, clusters)
            found.append(Figure(f"{direction} R@{nearest}", before, after, change, True))
    return tuple(found)


def _masked(rows: Sequence[Row], classes: int) -> Figure:
    """Sum the confusions of images, and draw whole images again."""
    before, after = (confusions(rows, when, classes) for when in ("clean", "attacked"))
    clean, attacked = (interval_of(partial(miou_of_draws, each=one), len(rows), draws=DRAWS) for one in (before, after))

    def fall(drawn: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        return miou_of_draws(drawn, after) - miou_of_draws(drawn, before)

    return Figure("mIoU", clean, attacked, interval_of(fall, len(rows), draws=DRAWS), True)


def confusions(rows: Sequence[Row], when: str, classes: int) -> Counts:
    """Return the confusion of each image, `[N, C, C]`; `when` is "clean" or "attacked"."""
    return np.stack([confusion(mask_of(row["truth"]), mask_of(row[f"said_{when}"]), classes) for row in rows])


def miou_of_draws(drawn: npt.NDArray[np.int64], each: Counts) -> npt.NDArray[np.float64]:
    """Return the mIoU of each draw of images, `[D]`, from how often each counts `[D, N]` and `confusions`."""
    return np.array([mean_iou(counts) for counts in np.tensordot(drawn, each, axes=1)])


def mask_of(content: bytes) -> npt.NDArray[np.uint8]:
    """Return a stored mask `[H, W]`."""
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        return np.asarray(image)


def mask_png(mask: npt.NDArray[np.uint8]) -> bytes:
    """Return a mask `[H, W]` as the content of a PNG file, a byte a pixel."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
