"""What every task beyond classification shares: chunks of images, the record, which images are kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ironclip.attacks.driver import GRANULE, DriverSettings, fitted
from ironclip.attacks.objectives import Objective
from ironclip.attacks.threat_model import ThreatModel
from ironclip.data.order import epoch_order
from ironclip.errors import ConfigError
from ironclip.evaluation.describing import game_hash, session
from ironclip.evaluation.image_files import Adversarials
from ironclip.evaluation.records import AttackInfo, ModelInfo, SampleIds, ThreatInfo, gallery_ids
from ironclip.evaluation.task_figures import task_figures
from ironclip.evaluation.task_store import Task, TaskRecord, TaskStore

CHUNK = 64
"""Images that are attacked together and stored as one file; a kill loses at most one such chunk."""

GALLERY = 16
"""Images kept for the report, the first by hash of their key."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class TaskRequest:
    """What is the same in every task.

    Attributes:
        model: Model source.
        data: Source of the images.
        threat: The game.
        out: The run folder; a run of the same request goes on where it stopped.
        name: What reports call the model; its source unless given.
        title: What reports call the set; its source unless given.
        data_root: What `{data}` in the source stands for.
        seed: Of random starts.
        limit: Images, by hash of their key.
        device: "cpu", "cuda", "cuda:1".
        tile: Rows a forward; rounded up to a multiple of 16, without influence on results.
        search_dtype: "float32" or "bfloat16"; verdicts are float32 always.
        save: Which images are stored: those of the report's "gallery", "all", or "none".
        command: What the user typed, for the record.
    """

    model: str
    data: str
    threat: ThreatModel
    out: Path
    name: str | None = None
    title: str | None = None
    data_root: str = "data"
    seed: int = 0
    limit: int | None = None
    device: str = "cpu"
    tile: int = 64
    search_dtype: str = "float32"
    save: Literal["gallery", "all", "none"] = "gallery"
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.search_dtype not in DTYPES:
            raise ConfigError(f'search dtype "{self.search_dtype}".', f"Give one of {', '.join(DTYPES)}.")
        if self.threat.integer or self.threat.acting != "native" or self.threat.knowledge != "white-box":
            raise ConfigError(
                f"{self.threat.caption()} is not played here.", "Give a white-box game of float images, acting native."
            )

    @property
    def source(self) -> str:
        """The source of the images, its place filled in."""
        return self.data.replace("{data}", self.data_root)


@dataclass(frozen=True)
class TaskProgress:
    """What a progress display shows.

    Attributes:
        done: Images with rows, those of earlier sittings included.
        total: Images.
        stage: What is under way, in words.
    """

    done: int
    total: int
    stage: str


def chunks_of(keys: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
    """Cut images into chunks, a function of the set of their keys; yields a name and positions."""
    order = epoch_order(keys, 0, 0)
    for number, start in enumerate(range(0, len(order), CHUNK)):
        yield f"{number:05d}", order[start : start + CHUNK]


def open_store(
    request: TaskRequest,
    task: Task,
    *,
    identity: str,
    model_name: str,
    fingerprint: str,
    keys: Sequence[str],
    size: tuple[int, int],
    attack: AttackInfo,
    settings: dict[str, Any],
    driver: DriverSettings,
    invariance: float,
) -> TaskStore:
    """Start the run that is asked for, or go on with it.

    Args:
        request: What the user asks for.
        task: Which.
        identity: sha256 of the model's weights.
        model_name: What it is called unless the request names it.
        fingerprint: Of the data.
        keys: Of all images.
        size: At which the adversary acts, height and width.
        attack: Name and all settings.
        settings: What else decides the figures.
        driver: Tile and precision.
        invariance: As `row_invariance` measured it.

    Raises:
        ResumeError: The folder holds another run; names the field.
    """
    threat = request.threat
    info = ThreatInfo(
        record=threat.record() | {"acting_size": list(size), "search_dtype": request.search_dtype},
        hash=game_hash(threat, size),
        caption=threat.caption(size),
    )
    record = TaskRecord(
        task=task,
        model=ModelInfo(name=request.name or model_name, source=request.model, sha256=identity),
        data=request.data,
        data_fingerprint=fingerprint,
        title=request.title or request.data,
        sample_ids=SampleIds.of(keys),
        threat=info,
        attack=attack,
        settings=settings,
        seed=request.seed,
        sessions=(session(request.command, request.device, driver, invariance),),
    )
    return TaskStore.create(request.out, record)


def driver_for(request: TaskRequest, objective: Objective, pixels: Tensor) -> tuple[DriverSettings, float]:
    """Choose how the driver tiles: rows that hang on their tile's shape get tiles of one shape.

    Args:
        request: Tile and precision.
        objective: Of `GRANULE` rows.
        pixels: `[GRANULE, 3, H, W]`.
    """
    settings = DriverSettings(tile=request.tile, search_dtype=DTYPES[request.search_dtype])
    return fitted(objective, pixels, settings)


def probe_rows(count: int) -> list[int]:
    """Return `GRANULE` positions of so many images, repeated where they are fewer."""
    return [place % count for place in range(GRANULE)]


def kept_images(
    request: TaskRequest, keys: Sequence[str], chunk: Sequence[str], clean: Tensor, attacked: Tensor
) -> Adversarials | None:
    """Return the images of a chunk that are to be stored.

    Args:
        request: Which are.
        keys: Of all images.
        chunk: Those of the chunk.
        clean: `[N, 3, H, W]`, those of the chunk.
        attacked: Likewise.
    """
    wanted = set(gallery_ids(keys, GALLERY)) if request.save == "gallery" else set(chunk)
    rows = [row for row, key in enumerate(chunk) if key in wanted]
    if request.save == "none" or not rows:
        return None
    return Adversarials([chunk[row] for row in rows], clean[rows].numpy(), attacked[rows].numpy())


def finish(store: TaskStore) -> TaskStore:
    """Write what the rows come to."""
    figures = task_figures(store.record, store.rows())
    store.write_figures(dataclasses.asdict(figures))
    return store
