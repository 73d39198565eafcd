"""The columns of a stored row, and when two rows are equal.

A row is one sample under one attack, as the driver verified it in float32. Source: evaluation plan 6.7 and 6.8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ironclip.errors import DataError
from ironclip.evaluation.records import UnitRecord

SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in (
            ("sample_id", pa.string()),
            ("y", pa.int32()),
            ("pred_clean", pa.int32()),  # with the tie rule applied: right if and only if equal to y
            ("margin_clean", pa.float32()),
            ("pred_adv", pa.int32()),
            ("margin_adv", pa.float32()),
            ("broken", pa.bool_()),
            ("attack", pa.string()),  # in a list of attacks: the one that the image is from, or the list's name if none
            ("loss_used", pa.string()),
            ("restart", pa.int16()),
            ("target", pa.int32()),  # -1: untargeted
            ("best_loss", pa.float32()),
            ("norm", pa.float64()),  # distance spent, in the norm of the threat model
            ("iterations", pa.int32()),  # to the first break; -1: none
            ("forwards", pa.int32()),
            ("backwards", pa.int32()),
            ("seconds", pa.float32()),
            ("near_tie", pa.bool_()),
            ("false_claims", pa.int16()),
            ("invalid", pa.bool_()),  # a claim outside the ball or the box: not a success
            ("logits_clean", pa.list_(pa.float32())),
            ("logits_adv", pa.list_(pa.float32())),
            ("tile", pa.int16()),
            ("dtype", pa.string()),
            ("threat_hash", pa.string()),
            ("model_sha256", pa.string()),
            ("seed", pa.int64()),
            ("chunk", pa.string()),
        )
    ]
)
# How a row came to be, not what was found.
INCIDENTAL = ("seconds", "tile", "chunk")


class ConflictError(DataError):
    """Two stored rows of one sample differ, though they should be the same computation."""


def rows_table(rows: pa.Table | Sequence[Mapping[str, Any]], record: UnitRecord, chunk: str) -> pa.Table:
    """Return the rows of a chunk as a table of `SCHEMA`, checked against the unit that they belong to.

    Args:
        rows: One mapping a row with all columns of `SCHEMA` but `chunk`, or a table of them.
        record: The unit.
        chunk: Name of the chunk, written into every row.

    Raises:
        DataError: A column is missing or unknown, of another type, null or NaN; a sample occurs twice; a row is of
            another threat model, attack, model or seed.
    """
    listed = rows.to_pylist() if isinstance(rows, pa.Table) else [dict(row) for row in rows]
    if not listed:
        raise DataError(f"chunk {chunk} has no rows.", "Write a chunk when at least one sample is done.")
    for row in listed:
        row["chunk"] = chunk
        missing, unknown = set(SCHEMA.names) - set(row), set(row) - set(SCHEMA.names)
        if missing or unknown:
            raise DataError(
                f"a row of chunk {chunk} lacks {sorted(missing) or 'nothing'} and has the unknown {sorted(unknown)}.",
                f"Give these columns: {', '.join(SCHEMA.names)}.",
            )
    try:
        table = pa.Table.from_pylist(listed, schema=SCHEMA)
    except (pa.ArrowException, OverflowError) as error:
        raise DataError(f"chunk {chunk} does not fit the columns: {error}", "See SCHEMA for their types.") from None
    _refuse_unscored(table, chunk)
    _refuse_strangers(table, record, chunk)
    return table


def unique_rows(table: pa.Table, unit: str) -> pa.Table:
    """Return the rows sorted by sample, each sample once.

    Raises:
        ConflictError: Two rows of one sample differ in more than time, tile and chunk; names the sample and the column.
    """
    table = table.sort_by("sample_id")
    ids = table["sample_id"].to_pylist()
    first = {sample_id: position for position, sample_id in reversed(list(enumerate(ids)))}
    if len(first) == len(ids):
        return table
    for position, sample_id in enumerate(ids):
        if position != first[sample_id]:
            _refuse_conflict(table.slice(first[sample_id], 1), table.slice(position, 1), sample_id, unit)
    return table.take(pa.array(sorted(first.values()), type=pa.int64()))


def _refuse_unscored(table: pa.Table, chunk: str) -> None:
    for name in SCHEMA.names:
        column = table[name].combine_chunks()
        values = column.flatten() if pa.types.is_list(column.type) else column
        unscored = column.null_count or values.null_count
        if not unscored and pa.types.is_floating(values.type):
            unscored = pc.sum(pc.is_nan(values)).as_py()
        if unscored:
            raise DataError(
                f"chunk {chunk}: {name} is empty or NaN in {unscored} places.",
                "Stop, or leave the samples out and count them as unscored; a NaN is never stored.",
            )


def _refuse_strangers(table: pa.Table, record: UnitRecord, chunk: str) -> None:
    expected = {
        "attack": record.attack.name,
        "threat_hash": record.threat.hash,
        "model_sha256": record.model_sha256,
        "seed": record.seed,
    }
    members = {member.label for member in record.attack.members}
    for name, value in expected.items():
        others = set(table[name].to_pylist()) - {value} - (members if name == "attack" else set())
        if others:
            raise DataError(
                f"chunk {chunk} has rows with {name} = {others.pop()!r}, its unit {record.unit_id} has {value!r}.",
                "Write every row into the unit that it belongs to.",
            )
    ids = table["sample_id"].to_pylist()
    if len(set(ids)) < len(ids):
        twice = next(sample_id for sample_id in ids if ids.count(sample_id) > 1)
        raise DataError(f"chunk {chunk} holds sample {twice} twice.", "Write one row a sample and attack.")


def _refuse_conflict(first: pa.Table, second: pa.Table, sample_id: str, unit: str) -> None:
    for name in SCHEMA.names:
        if name not in INCIDENTAL and not first[name].equals(second[name]):
            a, b = first[name][0].as_py(), second[name][0].as_py()
            raise ConflictError(
                f"conflict in {unit}: sample {sample_id} is stored twice and {name} differs ({a} against {b}).",
                "The runs were not the same computation: keep one of them, or evaluate again on one machine.",
            )
