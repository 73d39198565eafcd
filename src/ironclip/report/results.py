"""What a report says in numbers: plain objects, computed by `tables`, read by the pages and figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from ironclip.evaluation.aggregate import Totals
from ironclip.evaluation.intervals import Interval, PairedDifference
from ironclip.evaluation.records import AttackInfo, DatasetInfo, Session, SuiteInfo, UnitRecord
from ironclip.evaluation.store import RunStore
from ironclip.evaluation.unit_calibration import UnitCalibration


@dataclass(frozen=True)
class Comparison:
    """A model against the first of the table, on the same images.

    Attributes:
        paired: Difference with its interval; positive where this model is better.
        p_holm: McNemar's p value, adjusted for all comparisons of the report.
    """

    paired: PairedDifference
    p_holm: float

    @property
    def is_clear(self) -> bool:
        """Whether the difference survives the adjustment at 5 %."""
        return self.p_holm < 0.05


@dataclass(frozen=True)
class Cell:
    """One figure of the table.

    Attributes:
        share: Of all images, with its interval.
        per_class: Mean over classes; None where the data set does not ask for it, or images are missing.
        n: Images that were judged.
        missing: Images that were declared and have no row.
        versus_first: None for the first model, and where images are missing.
    """

    share: Interval
    per_class: Interval | None
    n: int
    missing: int
    versus_first: Comparison | None = None


@dataclass(frozen=True)
class Model:
    """A column of answers.

    Attributes:
        name: From its run; with some digits of its hash where two models share a name.
        source: Where it was loaded from.
        sha256: Hash of its weights.
        seeds: Of its runs.
        sessions: Of its runs.
        stores: Its run folders.
    """

    name: str
    source: str
    sha256: str
    seeds: tuple[int, ...]
    sessions: tuple[Session, ...]
    stores: tuple[RunStore, ...]


@dataclass(frozen=True)
class Budget:
    """One game on one data set: norm, radius and rules, and the attacks that were tried in it."""

    norm: str
    eps: str
    radius: Fraction
    caption: str
    threat_hash: str
    knowledge: str
    attacks: tuple[AttackInfo, ...]


@dataclass(frozen=True)
class DatasetTable:
    """All figures of one data set.

    Attributes:
        name: In the suite.
        info: Title, classes, metric.
        record: Of one unit; what it says of the data holds for all.
        budgets: In order of norm and radius.
        clean: A cell a model.
        robust: A row a budget, a cell a model; None where it was not run.
        unreadable: Samples that could not be decoded and have no answers, with the reason.
        calibration: A row a budget, a cell a model; None where it was not run, or has none.
        uncalibrated: Models without calibration where they were run, with the reason.
    """

    name: str
    info: DatasetInfo
    record: UnitRecord
    budgets: tuple[Budget, ...]
    clean: tuple[Cell | None, ...]
    robust: tuple[tuple[Cell | None, ...], ...]
    unreadable: dict[str, str]
    calibration: tuple[tuple[UnitCalibration | None, ...], ...] = ()
    uncalibrated: dict[int, str] = field(default_factory=dict)

    @property
    def chance(self) -> float:
        """Share of right answers by guessing."""
        return 1 / len(self.info.class_names)

    @property
    def reference(self) -> int:
        """Index of the budget in the middle, which curves aside stands for the data set."""
        return len(self.budgets) // 2


@dataclass(frozen=True)
class RowVerdict:
    """Whether a row's attack can be believed.

    Attributes:
        row: Model, data set, attack and radius, for people.
        verdict: Of the row's diagnosis (`evaluation.diagnostics`); empty where nobody has looked.
    """

    row: str
    verdict: tuple[str, ...]


def row_title(model: str, dataset: str, attack: AttackInfo, norm: str, eps: str) -> str:
    """Name a row for people."""
    return f"{model} on {dataset}, {attack.label}, {norm} {eps}"


@dataclass(frozen=True)
class Results:
    """Everything that a report says in numbers; `costs` has one entry a model, `verdicts` one a model and unit."""

    models: tuple[Model, ...]
    datasets: tuple[DatasetTable, ...]
    costs: tuple[Totals, ...]
    suite: SuiteInfo | None
    notes: tuple[str, ...]
    verdicts: tuple[RowVerdict, ...] = ()

    @property
    def attacks(self) -> list[str]:
        """Labels of all attacks that were run."""
        return list(dict.fromkeys(one.label for table in self.datasets for b in table.budgets for one in b.attacks))
