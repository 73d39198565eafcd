"""What each attack of a list broke: how many images are still right after each of them. Source: evaluation plan 8."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from ironclip.evaluation.aggregate import verdicts
from ironclip.evaluation.records import UnitRecord


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Images that are right on the clean image (the first stage, "clean"), and after each attack.

    Attributes:
        label: Of the attack.
        standing: Images still right, a count.
    """

    label: str
    standing: int


def waterfall(rows: pa.Table, record: UnitRecord) -> tuple[Stage, ...]:
    """Count what stands after each attack of a list, in its order.

    Args:
        rows: Of `rows.SCHEMA`, each sample once.
        record: Of a unit; without members the only stages are "clean" and the attack itself.

    Raises:
        DataError: There are no rows.
    """
    _, clean, robust = verdicts(rows, record)
    broke = [name for name, fell in zip(rows["attack"].to_pylist(), clean & ~robust, strict=True) if fell]
    labels = [member.label for member in record.attack.members] or [record.attack.name]
    stages, standing = [Stage(label="clean", standing=int(clean.sum()))], int(clean.sum())
    for label in labels:
        standing -= broke.count(label)
        stages.append(Stage(label=label, standing=standing))
    return tuple(stages)
