"""The run folder: what was evaluated, sample by sample, safe against being killed at any point.

    RUN/run.json                                    the record: model, suite, seed, data sets, sessions, units
    RUN/samples/<unit>/<chunk>-<sha8>.parquet       one row a sample and attack: the only source of truth
    RUN/adversarials/<unit>/<chunk>-<sha8>.safetensors   some clean and attacked images, float32
    RUN/rows/<unit>.json                            aggregates, always recomputable
    RUN/diagnostics/<unit>.json                     what was found of the row, and its verdict; see `diagnosis`
    RUN/unfinished/<unit>/                          the chunk under way in a list of attacks; see `unfinished`

A unit is one data set, one threat model, one attack or list of attacks. One process writes into a run folder at a
time; shards write into folders of their own and are merged. Source: evaluation plan 6.7.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pydantic

from ironclip.errors import ConfigError, DataError, ResumeError
from ironclip.evaluation.aggregate import AggregateRow, aggregate_rows
from ironclip.evaluation.diagnostics import CHECKS_VERSION, Diagnosis
from ironclip.evaluation.image_files import Adversarials, Pixels, image_keys, pack_images, unpack_images
from ironclip.evaluation.records import (
    SCHEMA_VERSION,
    DatasetInfo,
    Difference,
    RunRecord,
    Session,
    UnitRecord,
    run_difference,
    unit_difference,
)
from ironclip.evaluation.rows import SCHEMA, rows_table, unique_rows
from ironclip.files import hashed_files, read_hashed, write_atomically, write_hashed
from ironclip.registry import explain

log = logging.getLogger(__name__)


class RunStore:
    """A run folder, opened. Make one with `RunStore.create` or `RunStore.open`.

    Attributes:
        path: The folder.
        run: Its record as it stands on the disk.
    """

    def __init__(self, path: Path, run: RunRecord) -> None:
        self.path, self.run = path, run
        self._told: set[Path] = set()

    @classmethod
    def create(cls, path: Path, run: RunRecord) -> RunStore:
        """Start a run folder, or go on with the one that is there.

        Going on adds the session of `run` where it differs from the last, and its data sets.

        Raises:
            ConfigError: The folder holds other things than a run.
            ResumeError: It holds a run of another model, suite or seed; names the field and both values.
        """
        if not (path / "run.json").exists():
            refuse_foreign_folder(path)
            store = cls(path, run)
            store._save(run)
            return store
        store = cls.open(path)
        difference = run_difference(store.run, run)
        if difference:
            raise _cannot_resume(path, difference)
        sessions = store.run.sessions
        fresh = tuple(one for one in run.sessions if not sessions or _place(one) != _place(sessions[-1]))
        datasets = store.run.datasets | new_datasets(store.run, run)
        store._save(replace(store.run, datasets=datasets, sessions=sessions + fresh))
        return store

    @classmethod
    def open(cls, path: Path) -> RunStore:
        """Open a run folder for reading.

        Raises:
            DataError: There is none, or its record is damaged or of another schema version.
        """
        file = path / "run.json"
        if not file.is_file():
            raise DataError(f"{path} is no run folder: it has no run.json.", "Give a folder that an evaluation wrote.")
        try:
            run = pydantic.TypeAdapter(RunRecord).validate_json(file.read_bytes())
        except pydantic.ValidationError as error:
            if (path / "model").is_dir():
                raise DataError(
                    f"{path} is the run of a training, not of an evaluation.", f"Evaluate it: ironclip eval {path}"
                ) from None
            problems = "; ".join(explain(error, "run.json").splitlines())
            raise DataError(
                f"{file} cannot be read: {problems}", "Restore it from a copy, or evaluate again."
            ) from None
        if run.schema_version != SCHEMA_VERSION:
            raise DataError(
                f"{file} has the schema version {run.schema_version}, expected {SCHEMA_VERSION}.",
                "Read it with the version of IronCLIP that wrote it, or evaluate again.",
            )
        return cls(path, run)

    def units(self) -> list[str]:
        """Return the unit ids in the order in which they were declared."""
        return list(self.run.units)

    def record(self, unit: str) -> UnitRecord:
        """Return the record of a unit.

        Raises:
            DataError: The run has no such unit.
        """
        if unit not in self.run.units:
            raise DataError(f'{self.path} has no unit "{unit}".', f"It has: {', '.join(self.run.units) or 'none'}.")
        return self.run.units[unit]

    def open_unit(self, record: UnitRecord) -> str:
        """Declare a unit, or go on with it, and return its id.

        Raises:
            ResumeError: A unit of this id was recorded differently (tile and device are no part of a record).
            DataError: Its data set is none of the run's.
        """
        unit = record.unit_id
        if record.dataset not in self.run.datasets:
            raise DataError(
                f'unit {unit} is about "{record.dataset}", which the run does not describe.',
                f"Add it to the data sets of the run: {', '.join(self.run.datasets) or 'none'}.",
            )
        if unit not in self.run.units:
            self._save(replace(self.run, units={**self.run.units, unit: record}))
            return unit
        difference = unit_difference(self.run.units[unit], record)
        if difference:
            raise _cannot_resume(self.path / unit, difference)
        return unit

    def write_chunk(
        self,
        unit: str,
        chunk: str,
        rows: pa.Table | Sequence[Mapping[str, Any]],
        adversarials: Adversarials | None = None,
    ) -> Path:
        """Store the rows of a chunk, whole or not at all; replaces what is damaged under its name.

        Args:
            unit: From `open_unit`.
            chunk: Name, unique in the unit.
            rows: See `rows.rows_table`.
            adversarials: Images to keep, of samples of this chunk.

        Returns:
            Path of the Parquet file.

        Raises:
            DataError: The rows do not fit the schema or the unit.
            ShapeError: Images and keys do not fit together.
        """
        table = rows_table(rows, self.record(unit), chunk)
        # Images first: a chunk whose rows are there counts as done.
        if adversarials is not None and len(adversarials.keys):
            content = pack_images(adversarials, known=set(table["sample_id"].to_pylist()))
            write_hashed(self.path / "adversarials" / unit, chunk, ".safetensors", content)
        buffer = BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        written = write_hashed(self.path / "samples" / unit, chunk, ".parquet", buffer.getvalue())
        for file in self._files("samples", unit):
            if file.stem.rpartition("-")[0] == chunk and read_hashed(file) is None:
                file.unlink()
        return written

    def note_unreadable(self, unit: str, reasons: Mapping[str, str]) -> None:
        """Put samples that cannot be decoded on record, each with its reason; without rows they leave a unit partial.

        Raises:
            DataError: The run has no such unit.
        """
        self.record(unit)
        known = self.run.unreadable.get(unit, {})
        self._save(replace(self.run, unreadable={**self.run.unreadable, unit: {**known, **reasons}}))

    def done_ids(self, unit: str) -> set[str]:
        """Return the samples that have a row; those of a damaged chunk do not."""
        self.record(unit)
        done: set[str] = set()
        for _, content in self._intact("samples", unit):
            done.update(pq.read_table(BytesIO(content), columns=["sample_id"])["sample_id"].to_pylist())
        return done

    def damaged(self, unit: str) -> list[Path]:
        """Return the files of a unit whose content does not match the hash in their name; they are never read."""
        files = [path for kind in ("samples", "adversarials") for path in self._files(kind, unit)]
        return [path for path in files if read_hashed(path) is None]

    def read_unit(self, unit: str) -> pa.Table:
        """Return the rows of a unit, each sample once, sorted by sample; possibly none.

        Raises:
            ConflictError: Two rows of one sample differ.
            DataError: The run has no such unit.
        """
        self.record(unit)
        tables = [pq.read_table(BytesIO(content), schema=SCHEMA) for _, content in self._intact("samples", unit)]
        return unique_rows(pa.concat_tables(tables) if tables else SCHEMA.empty_table(), unit)

    def image_ids(self, unit: str) -> set[str]:
        """Return the samples whose images are stored."""
        return {key for _, content in self._intact("adversarials", unit) for key in image_keys(content)}

    def read_images(self, unit: str, ids: Collection[str]) -> dict[str, tuple[Pixels, Pixels]]:
        """Return the clean and the attacked image `[3, H, W]` of those samples that have them."""
        images: dict[str, tuple[Pixels, Pixels]] = {}
        for _, content in self._intact("adversarials", unit):
            images |= unpack_images(content, ids)
        return images

    def aggregate(self, unit: str) -> AggregateRow:
        """Compute the figures of a unit from its rows.

        Raises:
            DataError: It has no rows yet, or rows of samples that it was not declared over.
        """
        figures, found = aggregate_rows(self.read_unit(unit), self.record(unit)), self.diagnosis(unit)
        return figures if found is None else replace(figures, verdict=found.verdict, checks=found.checks)

    def write_diagnosis(self, unit: str, diagnosis: Diagnosis) -> None:
        """Store what was found of a unit, in place of what was found before.

        Raises:
            DataError: The run has no such unit.
        """
        self.record(unit)
        write_atomically(self.path / "diagnostics" / f"{unit}.json", _json(diagnosis))

    def diagnosis(self, unit: str) -> Diagnosis | None:
        """Return what was found of a unit; None where nobody has looked, or by other thresholds than today's.

        Raises:
            DataError: The file is damaged.
        """
        file = self.path / "diagnostics" / f"{unit}.json"
        if not file.is_file():
            return None
        try:
            found = pydantic.TypeAdapter(Diagnosis).validate_json(file.read_bytes())
        except pydantic.ValidationError as error:
            problems = explain(error, file.name)
            raise DataError(f"{file} cannot be read: {problems}", "Delete it and diagnose again.") from None
        return found if found.checks_version == CHECKS_VERSION else None

    def write_aggregates(self) -> None:
        """Replace `rows/`: the figures of each unit that has rows, for those who read them without this library."""
        for unit in self.units():
            if self.read_unit(unit).num_rows:
                write_atomically(self.path / "rows" / f"{unit}.json", _json(self.aggregate(unit)))

    def intact_files(self, unit: str) -> list[Path]:
        """Return the files of a unit whose content matches their name, samples and images."""
        return [path for kind in ("samples", "adversarials") for path, _ in self._intact(kind, unit)]

    def _files(self, kind: str, unit: str) -> list[Path]:
        return hashed_files(self.path / kind / unit, ".parquet" if kind == "samples" else ".safetensors")

    def _intact(self, kind: str, unit: str) -> Iterator[tuple[Path, bytes]]:
        for path in self._files(kind, unit):
            content = read_hashed(path)
            if content is not None:
                yield path, content
            elif path not in self._told:
                self._told.add(path)
                log.warning("%s is damaged (its hash does not match its name): its samples count as not done.", path)

    def _save(self, run: RunRecord) -> None:
        write_atomically(self.path / "run.json", _json(run))
        self.run = run


def refuse_foreign_folder(path: Path) -> None:
    """Make sure that a new run folder overwrites nothing.

    Raises:
        ConfigError: The path is a file, or a folder that is not empty.
    """
    if path.exists() and (not path.is_dir() or any(not one.name.endswith(".tmp") for one in path.iterdir())):
        raise ConfigError(f"{path} exists and is no run folder.", "Choose another folder, or empty this one.")


def new_datasets(known: RunRecord, other: RunRecord) -> dict[str, DatasetInfo]:
    """Return the data sets of the other run that the known one does not describe."""
    return {name: info for name, info in other.datasets.items() if name not in known.datasets}


def _cannot_resume(place: Path, difference: Difference) -> ResumeError:
    return ResumeError(
        f"{place} was stored with {difference.field} = {difference.first!r}, asked for is {difference.second!r}.",
        "Ask for what was stored, or choose another output folder.",
    )


def _place(session: Session) -> Session:
    return replace(session, created="")


def _json(record: Any) -> bytes:
    plain = pydantic.TypeAdapter(type(record)).dump_python(record, mode="json")
    return (json.dumps(plain, indent=2, ensure_ascii=False) + "\n").encode()
