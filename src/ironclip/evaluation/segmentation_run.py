"""Evaluate open-vocabulary masks under attack, image by image; see `segmentation` for the masks and the adversary."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ironclip.attacks.base import Attack
from ironclip.attacks.driver import DriverSettings, run_attack
from ironclip.data.fingerprints import fingerprint
from ironclip.data.masks import MaskedImage, MaskedSet, ade20k_masks, shapes_masks, voc_masks
from ironclip.errors import ConfigError, DataError, UnreadableSampleError, did_you_mean
from ironclip.evaluation.describing import attack_info
from ironclip.evaluation.segmentation import Mislabel, Segmenter, likeliest
from ironclip.evaluation.task_figures import mask_png
from ironclip.evaluation.task_run import (
    TaskProgress,
    TaskRequest,
    chunks_of,
    driver_for,
    finish,
    kept_images,
    open_store,
    probe_rows,
)
from ironclip.evaluation.task_store import TaskStore
from ironclip.models.sources import load_model
from ironclip.randomness import rank_of

TEMPLATES = ("a photo of a {}.",)


@dataclass(frozen=True, kw_only=True)
class SegmentationRequest(TaskRequest):
    """What to segment under which attack.

    `data` is `shapes`, `voc:FOLDER` or `ade20k:FOLDER`.

    Attributes:
        attack: Its settings.
        side: Of the square that images and masks are brought to; the model's resolution unless given.
        templates: Prompts of the classes.
    """

    attack: Attack
    side: int | None = None
    templates: tuple[str, ...] = TEMPLATES


def open_masks(source: str, side: int) -> MaskedSet:
    """Open masked images by their source.

    Raises:
        ConfigError: There is no such kind of source, or `shapes` at another side than its own.
        DataError: The data are missing.
    """
    kind, _, where = source.partition(":")
    readers: dict[str, Callable[[], MaskedSet]] = {
        "shapes": lambda: shapes_masks(where or "scenes_test"),
        "voc": lambda: voc_masks(Path(where), side=side),
        "ade20k": lambda: ade20k_masks(Path(where), side=side),
    }
    if kind not in readers:
        raise ConfigError(
            f'"{source}" is no source of masks.{did_you_mean(kind, readers)}',
            "Give shapes, voc:FOLDER or ade20k:FOLDER.",
        )
    return readers[kind]()


def evaluate_masks(
    request: SegmentationRequest, *, progress: Callable[[TaskProgress], None] | None = None
) -> TaskStore:
    """Segment images, clean and attacked, and store both masks of each.

    Raises:
        ConfigError: A source is not understood, or the tower is none that masks are read from.
        DataError: Data are missing, or an image cannot be read: mIoU is one figure of a whole set.
        ResumeError: `out` holds another run.
    """
    model = load_model(request.model, device=request.device)
    data = open_masks(request.source, request.side or model.input_resolution)
    order = sorted(range(len(data)), key=lambda at: rank_of("limit", data.keys[at]))[: request.limit]
    images = _read(data, sorted(order))
    segmenter = Segmenter(model, data.class_names, request.templates)
    first = [images[row] for row in probe_rows(len(images))]
    pixels = torch.stack([image.pixels for image in first])
    driver, invariance = driver_for(request, _objective(segmenter, first), pixels)
    keys = [image.key for image in images]
    store = open_store(
        request,
        "segmentation",
        identity=model.spec.sha256,
        model_name=request.model,
        fingerprint=fingerprint([data.source, *(f"{image.key} {_hash(image)}" for image in images)]),
        keys=keys,
        size=(pixels.shape[-2], pixels.shape[-1]),
        attack=attack_info(request.attack),
        settings={"class_names": list(data.class_names), "templates": list(request.templates)},
        driver=driver,
        invariance=invariance,
    )
    done, finished = store.done_chunks(), 0
    for chunk, positions in chunks_of(keys):
        if chunk not in done:
            own = [images[at] for at in positions]
            rows, clean, attacked = _attack(request, segmenter, own, driver)
            store.write_chunk(chunk, rows, kept_images(request, keys, [image.key for image in own], clean, attacked))
        finished += len(positions)
        if progress:
            progress(TaskProgress(finished, len(images), "stored"))
    return finish(store)


def _hash(image: MaskedImage) -> str:
    """Return the sha256 hex of an image and its mask."""
    digest = hashlib.sha256(image.pixels.numpy().tobytes())
    digest.update(image.mask.numpy().tobytes())
    return digest.hexdigest()


def _read(data: MaskedSet, positions: Sequence[int]) -> list[MaskedImage]:
    try:
        images = [data[position] for position in positions]
    except UnreadableSampleError as error:
        raise DataError(f"sample {error.key} cannot be read: {error.reason}", "Mend it, or remove it.") from None
    if not images:
        raise DataError(f"{data.source} holds no image.", "Fetch the data anew.")
    return images


def _objective(segmenter: Segmenter, images: Sequence[MaskedImage]) -> Mislabel:
    return Mislabel(segmenter, torch.stack([image.mask for image in images]).to(segmenter.class_weights.device))


def _attack(
    request: SegmentationRequest, segmenter: Segmenter, images: Sequence[MaskedImage], driver: DriverSettings
) -> tuple[list[dict[str, Any]], Tensor, Tensor]:
    """Attack some images; returns their rows, and the images clean and attacked, `[N, 3, H, W]`."""
    pixels = torch.stack([image.pixels for image in images])
    keys, objective = [image.key for image in images], _objective(segmenter, images)
    found = run_attack(request.attack, objective, pixels, keys, request.threat, seed=request.seed, settings=driver)
    said = [likeliest(segmenter, points, driver).numpy().astype(np.uint8) for points in (pixels, found.adversarial)]
    rows = [
        {
            "sample_id": image.key,
            "image_id": image.key,
            "norm": float(found.norm[at]),
            "forwards": int(found.forwards[at]),
            "backwards": int(found.backwards[at]),
            "truth": mask_png(image.mask.numpy().astype(np.uint8)),
            "said_clean": mask_png(said[0][at]),
            "said_attacked": mask_png(said[1][at]),
            "loss_clean": float(found.clean.value[at]),
            "loss_attacked": float(found.final.value[at]),
        }
        for at, image in enumerate(images)
    ]
    return rows, pixels, found.adversarial
