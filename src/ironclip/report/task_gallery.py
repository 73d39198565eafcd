"""Some images of a task as the model met them: what it said, found or marked, clean and under attack.

The images are the first by a hash of their key, so nobody chose them; all comes from the store.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ironclip.data.masks import UNLABELLED
from ironclip.evaluation.records import gallery_ids
from ironclip.evaluation.task_figures import mask_of
from ironclip.evaluation.task_store import TaskStore
from ironclip.report.gallery import png_uri

IMAGES = 6

Row = dict[str, Any]


@dataclass(frozen=True)
class Picture:
    """An image with what stands below it.

    Attributes:
        label: "clean", "attacked", "truth".
        uri: PNG data URI; "" where there is nothing to show.
        words: What is said of it.
    """

    label: str
    uri: str
    words: str


@dataclass(frozen=True)
class Exhibit:
    """One image of the set.

    Attributes:
        image_id: Its key.
        asked: What the model was asked, or what was looked for.
        truth: What people say.
        pictures: Clean and attacked, and the masks of each.
    """

    image_id: str
    asked: str
    truth: str
    pictures: tuple[Picture, ...]


def task_gallery(store: TaskStore) -> list[Exhibit]:
    """Return what is shown of a run; nothing where no images were stored and no text says anything without them."""
    rows: dict[str, Row] = {}
    for row in store.rows():
        rows.setdefault(row["image_id"], row)
    stored = store.image_ids()
    ids = gallery_ids(stored or rows, IMAGES)
    images = store.read_images(ids)
    found = []
    for key in ids:
        uris = [png_uri(side) for side in images[key]] if key in images else ["", ""]
        found.append(_exhibit(store, rows[key], uris))
    return found


def _exhibit(store: TaskStore, row: Row, uris: Sequence[str]) -> Exhibit:
    task, key = store.record.task, row["image_id"]
    if task == "segmentation":
        names = store.record.settings["class_names"]
        masks = [Picture(label, *_mask(row[column], names)) for label, column in _MASKS]
        return Exhibit(key, "", "", (Picture("clean", uris[0], ""), Picture("attacked", uris[1], ""), *masks))
    if task == "retrieval":
        clean, attacked = (f"rank {row[f'rank_{when}']}; nearest: {row[f'found_{when}']}" for when in _WHEN)
        asked = f"looked for by “{row['query']}”" if row["query"] else "looks for its captions"
        if row["query_attacked"] != row["query"]:
            asked += f", attacked “{row['query_attacked']}”"
        return Exhibit(key, asked, "", (Picture("clean", uris[0], clean), Picture("attacked", uris[1], attacked)))
    truth = row["target"] if task == "targeted" else row["references"][0]
    pictures = [
        Picture(when, uri, row[f"text_{when}"] or "says nothing") for when, uri in zip(_WHEN, uris, strict=True)
    ]
    return Exhibit(key, row["prompt"], truth, tuple(pictures))


_WHEN = ("clean", "attacked")
_MASKS = (("truth", "truth"), ("said of the clean image", "said_clean"), ("said of the attacked one", "said_attacked"))


def _mask(content: bytes, names: Sequence[str]) -> tuple[str, str]:
    """Return a mask in colours, and the classes in it, the largest first."""
    mask = mask_of(content)
    classes, counts = np.unique(mask[mask != UNLABELLED], return_counts=True)
    words = ", ".join(names[classes[at]] for at in np.argsort(-counts, kind="stable")[:3])
    return png_uri(coloured(mask)), words


def coloured(mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Paint a mask `[H, W]`, each class in a colour of its own that is the same in every picture; `[3, H, W]`."""
    # The golden section spreads hues, whatever number of classes there is.
    table = np.array([colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.55 + 0.4 * (label % 2), 0.9) for label in range(256)])
    table[UNLABELLED] = 0.5
    painted: npt.NDArray[np.float32] = table[mask].transpose(2, 0, 1).astype(np.float32)
    return painted
