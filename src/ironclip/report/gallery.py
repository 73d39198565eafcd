"""Some images as the models saw them: clean, what the attack added, attacked, and each model's answers.

The images are the first by a hash of their key, so nobody chose them; they come from the store, as do the answers.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from ironclip.evaluation.records import gallery_ids
from ironclip.evaluation.store import RunStore
from ironclip.report.results import Budget, DatasetTable, Model
from ironclip.report.wording import magnification

Pixels = npt.NDArray[np.float32]
IMAGES_PER_DATASET = 3
_SHOWN_SIDE = 128  # small images are enlarged to about this many pixels, dots staying dots


@dataclass(frozen=True)
class Answer:
    """What a model says to an image; `probability` is None where no logits were stored."""

    name: str
    probability: float | None
    is_right: bool


@dataclass(frozen=True)
class Attempt:
    """One model against the attack on one image; images are PNG data URIs."""

    model: int
    clean: Answer
    attacked: Answer
    verdict: Literal["holds", "falls", "wrong"]
    change: str
    image: str


@dataclass(frozen=True)
class Specimen:
    """One image, with the attempts on each model."""

    sample_id: str
    truth: str
    image: str
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True)
class Gallery:
    """The images of one data set at one budget.

    Attributes:
        title: Of the data set.
        eps: The budget.
        attack: Label of the attack.
        magnified: By how much the change is magnified; `64x`.
        specimens: The images.
    """

    title: str
    eps: str
    attack: str
    magnified: str
    specimens: tuple[Specimen, ...]


def gallery(table: DatasetTable, models: Sequence[Model]) -> Gallery | None:
    """Return the gallery of a data set at its middle budget, or None where no images were stored."""
    budget = table.budgets[table.reference]
    for attack in budget.attacks:
        sources = list(_sources(table.name, budget, attack.name, models))
        stored = [store.image_ids(unit) for _, store, unit in sources]
        shared = set.intersection(*(ids for ids in stored if ids)) if any(stored) else set()
        ids = gallery_ids(shared, IMAGES_PER_DATASET)
        if ids:
            shown = [source for source, has in zip(sources, stored, strict=True) if has]
            return _gallery(table, budget, attack.label, shown, ids)
    return None


def _sources(dataset: str, budget: Budget, attack: str, models: Sequence[Model]) -> Iterator[tuple[int, RunStore, str]]:
    for index, model in enumerate(models):
        for store in model.stores:
            for unit in store.units():
                record = store.record(unit)
                if (record.dataset, record.threat.hash, record.attack.name) == (dataset, budget.threat_hash, attack):
                    yield index, store, unit


def _gallery(
    table: DatasetTable, budget: Budget, attack: str, sources: Sequence[tuple[int, RunStore, str]], ids: Sequence[str]
) -> Gallery:
    images = {model: store.read_images(unit, ids) for model, store, unit in sources}
    rows = {}
    for model, store, unit in sources:
        every = store.read_unit(unit)
        shown = every.filter(pc.is_in(every["sample_id"], pa.array(ids)))
        rows[model] = {row["sample_id"]: row for row in shown.to_pylist()}
    names = table.info.class_names
    # In linf a pixel moves by eps at most; elsewhere the largest move shown sets the scale.
    reach = (
        float(budget.radius)
        if budget.norm == "linf"
        else max(float(np.abs(after - before).max()) for pairs in images.values() for before, after in pairs.values())
    )
    factor = 0.5 / reach if reach else 1.0
    specimens = []
    for sample_id in ids:
        attempts = []
        for model, pairs in images.items():
            before, after = pairs[sample_id]
            row = rows[model][sample_id]
            attempts.append(
                Attempt(
                    model=model,
                    clean=_answer(row, "clean", names),
                    attacked=_answer(row, "adv", names),
                    verdict=_verdict(row),
                    change=png_uri(0.5 + factor * (after - before)),
                    image=png_uri(after),
                )
            )
        first = sources[0][0]
        truth = names[rows[first][sample_id]["y"]]
        specimens.append(Specimen(sample_id, truth, png_uri(images[first][sample_id][0]), tuple(attempts)))
    return Gallery(table.info.title, budget.eps, attack, magnification(factor), tuple(specimens))


def _verdict(row: dict[str, Any]) -> Literal["holds", "falls", "wrong"]:
    if row["pred_clean"] != row["y"]:
        return "wrong"
    return "falls" if row["broken"] else "holds"


def _answer(row: dict[str, Any], side: str, names: Sequence[str]) -> Answer:
    prediction = row[f"pred_{side}"]
    logits = np.asarray(row[f"logits_{side}"], dtype=np.float64)
    probability = None
    if logits.size:
        odds = np.exp(logits - logits.max())
        probability = float(odds[prediction] / odds.sum())
    return Answer(names[prediction], probability, prediction == row["y"])


def png_uri(pixels: Pixels) -> str:
    """Return an image `[3, H, W]` in [0, 1] as a PNG data URI, small ones enlarged."""
    levels = np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    factor = max(1, round(_SHOWN_SIDE / max(levels.shape[:2])))
    image = Image.fromarray(np.repeat(np.repeat(levels, factor, axis=0), factor, axis=1))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
