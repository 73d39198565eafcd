"""Shards become one run: the union of their files, if they describe the same game and agree where they overlap."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from ironclip.errors import ConfigError
from ironclip.evaluation.records import Difference, RunRecord, run_difference, unit_difference
from ironclip.evaluation.rows import unique_rows
from ironclip.evaluation.store import RunStore, new_datasets, refuse_foreign_folder
from ironclip.files import write_atomically


def merge(runs: Sequence[Path], out: Path) -> RunStore:
    """Join run folders into a new one; damaged chunks are left behind, coverage is computed anew.

    Args:
        runs: Folders, at least one.
        out: New folder; it appears whole or not at all.

    Raises:
        ConfigError: Two runs differ in model, suite, seed or in the record of a unit; names the field and both values.
        ConflictError: A sample of two runs has different rows; names it.
        DataError: One of the folders is no run.
    """
    if not runs:
        raise ConfigError("no runs to merge.", "Give at least one run folder.")
    refuse_foreign_folder(out)
    stores = [RunStore.open(path) for path in runs]
    joined = stores[0].run
    for store in stores[1:]:
        joined = _join(joined, store, stores[0].path)
    for unit in joined.units:
        holders = [store for store in stores if unit in store.run.units]
        unique_rows(pa.concat_tables([store.read_unit(unit) for store in holders]), unit)

    building = out.with_name(f".{out.name}.merging")
    if building.exists():
        shutil.rmtree(building)  # of a merge that was killed
    merged = RunStore.create(building, joined)
    for store in stores:
        for unit in store.units():
            for file in store.intact_files(unit):
                write_atomically(building / file.relative_to(store.path), file.read_bytes())
    merged.write_aggregates()
    building.replace(out)
    return RunStore.open(out)


def _join(joined: RunRecord, store: RunStore, first: Path) -> RunRecord:
    difference = run_difference(joined, store.run)
    for unit in joined.units.keys() & store.run.units.keys():
        difference = difference or _within(unit, unit_difference(joined.units[unit], store.run.units[unit]))
    if difference:
        raise ConfigError(
            f"{first} and {store.path} are not parts of one run: {difference.field} is {difference.first!r} in the "
            f"first, {difference.second!r} in the second.",
            "Merge shards of one evaluation only; different models are compared by the report.",
        )
    sessions = joined.sessions + tuple(one for one in store.run.sessions if one not in joined.sessions)
    return replace(
        joined,
        datasets=joined.datasets | new_datasets(joined, store.run),
        sessions=sessions,
        units=joined.units | store.run.units,
        unreadable={
            unit: joined.unreadable.get(unit, {}) | store.run.unreadable.get(unit, {})
            for unit in joined.unreadable | store.run.unreadable
        },
    )


def _within(unit: str, difference: Difference | None) -> Difference | None:
    return difference and difference._replace(field=f"{unit}: {difference.field}")
