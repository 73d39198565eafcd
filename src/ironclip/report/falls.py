"""The waterfall of a report: what share of the images is still right after each attack of a list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ironclip.evaluation.waterfall import Stage, waterfall
from ironclip.report.results import DatasetTable, Model, Results
from ironclip.report.wording import percent

EXPLAINED = (
    "Percent of all images that are still right: first without an adversary, then after each attack of the list. Each "
    "attack was run on what those before it had left, so what stands at the end stood all of them."
)


@dataclass(frozen=True)
class Fall:
    """One list of attacks in one game on one data set.

    Attributes:
        title: Data set, game and list.
        head: "clean", then the attacks in their order.
        lines: A model each: its index, and a share for each column of `head`.
    """

    title: str
    head: tuple[str, ...]
    lines: tuple[tuple[int, tuple[str, ...]], ...]


def falls(results: Results) -> list[Fall]:
    """Return the waterfalls of all lists of attacks that were run; single attacks have none."""
    return [fall for table in results.datasets for fall in _falls(table, results.models)]


def _falls(table: DatasetTable, models: Sequence[Model]) -> list[Fall]:
    found = []
    for budget in table.budgets:
        for attack in budget.attacks:
            if not attack.members:
                continue
            lines = []
            for index, model in enumerate(models):
                for store in model.stores:
                    for unit, record in store.run.units.items():
                        here = (record.dataset, record.threat.hash, record.attack)
                        if (
                            here == (table.name, budget.threat_hash, attack)
                            and (rows := store.read_unit(unit)).num_rows
                        ):
                            lines.append((index, _shares(waterfall(rows, record), rows.num_rows)))
            head = ("clean", *(member.label for member in attack.members))
            found.append(Fall(f"{table.info.title}, {budget.caption}, {attack.label}", head, tuple(lines)))
    return found


def _shares(stages: Sequence[Stage], n: int) -> tuple[str, ...]:
    return tuple(percent(stage.standing / n) for stage in stages)
