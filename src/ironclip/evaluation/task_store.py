"""The run folder of a task beyond classification: one model, one set, one game, one attack; safe against being killed.

    RUN/task.json                                 the record
    RUN/samples/<chunk>-<sha8>.parquet            a row a sample (or query): the only source of truth
    RUN/images/<chunk>-<sha8>.safetensors         some clean and attacked images, float32
    RUN/figures.json                              what the rows come to, always recomputable

What a score of one sample is may hang on the whole set (CIDEr's weights, a gallery), so a set is never sharded here.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pydantic

from ironclip.errors import DataError, ResumeError
from ironclip.evaluation.image_files import Adversarials, Pixels, image_keys, pack_images, unpack_images
from ironclip.evaluation.records import (
    AttackInfo,
    Difference,
    ModelInfo,
    SampleIds,
    Session,
    ThreatInfo,
    first_difference,
)
from ironclip.evaluation.store import refuse_foreign_folder
from ironclip.evaluation.task_rows import SCHEMAS
from ironclip.files import hashed_files, read_hashed, write_atomically, write_hashed
from ironclip.registry import explain

TASK_FILE = "task.json"
TASK_SCHEMA_VERSION = 1

Task = Literal["caption", "answer", "targeted", "retrieval", "segmentation"]


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """The content of `task.json`.

    Attributes:
        task: Which.
        model: What was attacked.
        data: The source of the images.
        data_fingerprint: sha256 of their content.
        title: What readers call the set.
        sample_ids: The images, all of them.
        threat: The game.
        attack: Name and all settings.
        settings: What else decides the figures: prompt, threshold, precision of the search, class names.
        seed: Of the draws.
        sessions: Sittings, the first first.
        schema_version: Of this record and of the rows.
    """

    task: Task
    model: ModelInfo
    data: str
    data_fingerprint: str
    title: str
    sample_ids: SampleIds
    threat: ThreatInfo
    attack: AttackInfo
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    sessions: tuple[Session, ...] = ()
    schema_version: int = TASK_SCHEMA_VERSION


class TaskStore:
    """A run folder of a task, opened. Make one with `TaskStore.create` or `TaskStore.open`.

    Attributes:
        path: The folder.
        record: Its record as it stands on the disk.
    """

    def __init__(self, path: Path, record: TaskRecord) -> None:
        self.path, self.record = path, record

    @classmethod
    def create(cls, path: Path, record: TaskRecord) -> TaskStore:
        """Start a run folder, or go on with the one that is there, adding the session of `record`.

        Raises:
            ConfigError: The folder holds other things than such a run.
            ResumeError: It holds a run of another request; names the field and both values.
        """
        if not (path / TASK_FILE).is_file():
            refuse_foreign_folder(path)
            store = cls(path, record)
            store._save(record)
            return store
        store = cls.open(path)
        if difference := task_difference(store.record, record):
            raise ResumeError(
                f"{path} was stored with {difference.field} = {difference.first!r}, asked for is "
                f"{difference.second!r}.",
                "Ask for what was stored, or choose another output folder.",
            )
        if not store.is_complete():
            store._save(replace(store.record, sessions=store.record.sessions + record.sessions))
        return store

    @classmethod
    def open(cls, path: Path) -> TaskStore:
        """Open a run folder for reading.

        Raises:
            DataError: There is none, or its record is damaged or of another schema version.
        """
        file = path / TASK_FILE
        if not file.is_file():
            raise DataError(f"{path} holds no {TASK_FILE}.", "Give a folder that ironclip eval-task wrote.")
        try:
            record = pydantic.TypeAdapter(TaskRecord).validate_json(file.read_bytes())
        except pydantic.ValidationError as error:
            problems = explain(error, TASK_FILE)
            raise DataError(f"{file} cannot be read: {problems}", "Restore it, or evaluate again.") from None
        if record.schema_version != TASK_SCHEMA_VERSION:
            raise DataError(
                f"{file} has the schema version {record.schema_version}, expected {TASK_SCHEMA_VERSION}.",
                "Read it with the version of IronCLIP that wrote it, or evaluate again.",
            )
        return cls(path, record)

    def write_chunk(self, chunk: str, rows: Sequence[Mapping[str, Any]], images: Adversarials | None = None) -> None:
        """Store a chunk whole or not at all; images first, since a chunk whose rows are there counts as done.

        Raises:
            DataError: Rows are missing or do not fit the task's columns, or images have no row.
        """
        schema = SCHEMAS[self.record.task]
        unlike = sorted({name for row in rows for name in {*row} ^ {*schema.names}})
        if not rows or unlike:
            raise DataError(
                f"chunk {chunk} has {len(rows)} rows; missing or unknown: {', '.join(unlike) or 'nothing'}.",
                f"Give these columns: {', '.join(schema.names)}.",
            )
        try:
            table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
        except (pa.ArrowException, OverflowError) as error:
            raise DataError(f"chunk {chunk} does not fit the columns: {error}", "See task_rows for them.") from None
        if images is not None and len(images.keys):
            content = pack_images(images, known={row["image_id"] for row in rows})
            write_hashed(self.path / "images", chunk, ".safetensors", content)
        buffer = BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        write_hashed(self.path / "samples", chunk, ".parquet", buffer.getvalue())

    def done_chunks(self) -> set[str]:
        """Return the chunks whose rows are there and intact."""
        files = hashed_files(self.path / "samples", ".parquet")
        return {file.stem.rpartition("-")[0] for file in files if read_hashed(file) is not None}

    def rows(self) -> list[dict[str, Any]]:
        """Return all rows, sorted by sample."""
        contents = [read_hashed(file) for file in hashed_files(self.path / "samples", ".parquet")]
        found = [row for one in contents if one is not None for row in pq.read_table(BytesIO(one)).to_pylist()]
        return sorted(found, key=lambda row: str(row["sample_id"]))

    def is_complete(self) -> bool:
        """Whether every image that was declared has its rows."""
        return len({row["image_id"] for row in self.rows()}) == self.record.sample_ids.count

    def image_ids(self) -> set[str]:
        """Return the images that are stored."""
        return {key for content in self._image_files() for key in image_keys(content)}

    def read_images(self, ids: Collection[str]) -> dict[str, tuple[Pixels, Pixels]]:
        """Return the clean and the attacked image `[3, H, W]` of those samples that have them."""
        images: dict[str, tuple[Pixels, Pixels]] = {}
        for content in self._image_files():
            images |= unpack_images(content, ids)
        return images

    def write_figures(self, figures: Mapping[str, Any]) -> None:
        """Replace `figures.json`, for those who read it without this library."""
        write_atomically(self.path / "figures.json", _json(dict(figures)))

    def _image_files(self) -> Iterator[bytes]:
        contents = map(read_hashed, hashed_files(self.path / "images", ".safetensors"))
        return (content for content in contents if content is not None)

    def _save(self, record: TaskRecord) -> None:
        write_atomically(self.path / TASK_FILE, _json(record))
        self.record = record


def task_difference(first: TaskRecord, second: TaskRecord) -> Difference | None:
    """Return the first field that keeps two records from being of one run, or None; names and sittings may differ."""
    plain = [pydantic.TypeAdapter(TaskRecord).dump_python(record, mode="json") for record in (first, second)]
    for one in plain:
        del one["sessions"], one["title"], one["model"]["name"], one["model"]["source"]
    return first_difference(*plain)


def is_task_run(path: Path) -> bool:
    """Whether a folder is a run of a task."""
    return (path / TASK_FILE).is_file()


def _json(content: Any) -> bytes:
    plain = pydantic.TypeAdapter(type(content)).dump_python(content, mode="json")
    return (json.dumps(plain, indent=2, ensure_ascii=False) + "\n").encode()
