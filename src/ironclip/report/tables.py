"""From run folders to plain tables: models x data sets x budgets, with intervals and paired differences.

What may not be compared is refused: another suite version, another game in one column, other images. Several attacks of
one game are joined pointwise: an image is robust only if no attack breaks it. Source: evaluation plan 1.4, 6.7, 8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from ironclip.errors import ConfigError, DataError
from ironclip.evaluation.aggregate import Totals, calibration_or_reason, n_missing, share, totals, verdicts
from ironclip.evaluation.intervals import holm, mean_per_class_interval, paired_difference
from ironclip.evaluation.records import (
    AttackInfo,
    DatasetInfo,
    Session,
    UnitRecord,
    first_difference,
    unit_difference,
)
from ironclip.evaluation.store import RunStore
from ironclip.evaluation.unit_calibration import UnitCalibration
from ironclip.report.calibration import hardest
from ironclip.report.results import Budget, Cell, Comparison, DatasetTable, Model, Results, RowVerdict, row_title

Verdicts = dict[str, bool]


@dataclass(frozen=True)
class _Unit:
    """One unit of one model, boiled down to a verdict a sample."""

    model: int
    store: RunStore
    name: str
    record: UnitRecord
    totals: Totals
    labels: dict[str, int]
    clean: Verdicts
    robust: Verdicts
    unreadable: dict[str, str]

    @property
    def game(self) -> tuple[str, Fraction]:
        return self.record.threat.norm, self.record.threat.radius


def load_results(runs: Sequence[Path]) -> Results:
    """Read run folders and compute all figures of a report.

    Args:
        runs: Folders; the first holds the model that the others are compared with.

    Raises:
        ConfigError: The runs may not share a table; says why.
        DataError: A folder is no run, or nothing was evaluated.
        ConflictError: Rows of one sample contradict each other.
    """
    if not runs:
        raise ConfigError("no runs to report on.", "Give at least one run folder.")
    stores = [RunStore.open(path) for path in runs]
    _refuse_other_suites(stores)
    models = _models(stores)
    units = [unit for index, model in enumerate(models) for unit in _units(index, model)]
    if not units:
        raise DataError("the runs hold no results yet.", "Run the evaluation first.")
    described: dict[str, DatasetInfo] = {}
    for store in stores:
        described = described | {name: info for name, info in store.run.datasets.items() if name not in described}
    tables = []
    for name, info in described.items():
        members = [unit for unit in units if unit.record.dataset == name]
        if members:
            tables.append(_dataset_table(name, info, members, models))
    costs = tuple(_cost(unit.totals for unit in units if unit.model == index) for index in range(len(models)))
    return Results(
        models=tuple(models),
        datasets=_with_holm(tables),
        costs=costs,
        suite=stores[0].run.suite,
        notes=_disagreements(units, models),
        verdicts=tuple(_row_verdict(unit, models) for unit in units),
    )


def _row_verdict(unit: _Unit, models: Sequence[Model]) -> RowVerdict:
    found, record = unit.store.diagnosis(unit.name), unit.record
    title = unit.store.run.datasets[record.dataset].title
    row = row_title(models[unit.model].name, title, record.attack, record.threat.norm, record.threat.eps)
    return RowVerdict(row, () if found is None else found.verdict)


def _models(stores: Sequence[RunStore]) -> list[Model]:
    groups: dict[tuple[str, str], list[RunStore]] = {}
    for store in stores:
        groups.setdefault((store.run.model.name, store.run.model.sha256), []).append(store)
    names = [name for name, _ in groups]
    models = []
    for (name, sha256), members in groups.items():
        sessions: list[Session] = []
        for store in members:
            sessions += [session for session in store.run.sessions if session not in sessions]
        models.append(
            Model(
                name=name if names.count(name) == 1 else f"{name} ({sha256[:8]})",
                source=members[0].run.model.source,
                sha256=sha256,
                seeds=tuple(dict.fromkeys(store.run.seed for store in members)),
                sessions=tuple(sessions),
                stores=tuple(members),
            )
        )
    return models


def _units(index: int, model: Model) -> Iterable[_Unit]:
    seen: dict[str, Path] = {}
    for store in model.stores:
        for name in store.units():
            record, rows = store.record(name), store.read_unit(name)
            if not rows.num_rows:
                continue
            if name in seen:
                raise ConfigError(
                    f'{seen[name]} and {store.path} both hold {name} of the model "{model.name}".',
                    'Join them with "ironclip merge" first, or leave one out.',
                )
            seen[name] = store.path
            n_missing(rows, record)  # refuses rows of images that were not declared
            labels, clean, robust = verdicts(rows, record)
            ids = rows["sample_id"].to_pylist()
            yield _Unit(
                model=index,
                store=store,
                name=name,
                record=record,
                totals=totals(rows),
                labels=dict(zip(ids, labels.tolist(), strict=True)),
                clean=dict(zip(ids, clean.tolist(), strict=True)),
                robust=dict(zip(ids, robust.tolist(), strict=True)),
                # A sample may have been read in a later sitting.
                unreadable={
                    key: reason for key, reason in store.run.unreadable.get(name, {}).items() if key not in set(ids)
                },
            )


def _dataset_table(name: str, info: DatasetInfo, units: Sequence[_Unit], models: Sequence[Model]) -> DatasetTable:
    _refuse_other_images(units, models)
    by_class = info.metric == "mean_per_class"
    labels = {key: label for unit in units for key, label in unit.labels.items()}
    n_declared = units[0].record.sample_ids.count

    def column(join: Callable[[Sequence[_Unit]], Verdicts], members: Sequence[_Unit]) -> tuple[Cell | None, ...]:
        answers = [join([unit for unit in members if unit.model == index]) for index in range(len(models))]
        return tuple(
            _cell(one, answers[0] if index else {}, labels, n_declared, by_class) for index, one in enumerate(answers)
        )

    games = sorted({unit.game for unit in units})
    budgets, robust, calibration = [], [], []
    uncalibrated: dict[int, str] = {}
    for game in games:
        members = [unit for unit in units if unit.game == game]
        budgets.append(_budget(name, members, models))
        robust.append(column(_stands, members))
        calibration.append(tuple(_calibration(index, members, uncalibrated) for index in range(len(models))))
    return DatasetTable(
        name=name,
        info=info,
        record=units[0].record,
        budgets=tuple(budgets),
        clean=column(_clean, units),
        robust=tuple(robust),
        unreadable={key: reason for unit in units for key, reason in unit.unreadable.items()},
        calibration=tuple(calibration),
        uncalibrated=uncalibrated,
    )


def _calibration(index: int, units: Sequence[_Unit], reasons: dict[int, str]) -> UnitCalibration | None:
    """Calibrate a model under all attacks of a game, or note why it cannot be."""
    members = [unit for unit in units if unit.model == index]
    if not members:
        return None
    rows = hardest([unit.store.read_unit(unit.name) for unit in members])
    found, reason = calibration_or_reason(rows, members[0].record)
    if reason:
        reasons[index] = reason
    return found


def _clean(units: Sequence[_Unit]) -> Verdicts:
    """Join the clean verdicts of one model; the weakest budget was there first."""
    joined: Verdicts = {}
    for unit in sorted(units, key=lambda unit: unit.game):
        joined = unit.clean | joined
    return joined


def _stands(units: Sequence[_Unit]) -> Verdicts:
    """Join the attacks of one game: an image stands if it stands under all; it is judged if all judged it."""
    if not units:
        return {}
    judged = set.intersection(*(set(unit.robust) for unit in units))
    return {key: all(unit.robust[key] for unit in units) for key in judged}


def _cell(answers: Verdicts, first: Verdicts, labels: dict[str, int], n_declared: int, by_class: bool) -> Cell | None:
    if not answers:
        return None
    ids = sorted(answers)
    missing = n_declared - len(ids)
    versus_first = None
    if first and not missing and len(first) == len(ids):
        pairs = [(answers[key], first[key]) for key in ids]
        counts = [pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))]
        paired = paired_difference(*counts)
        versus_first = Comparison(paired, paired.p_value)  # adjusted once all comparisons of the report are known
    per_class = None
    if by_class and not missing:
        per_class = mean_per_class_interval([answers[key] for key in ids], [labels[key] for key in ids])
    return Cell(share(sum(answers.values()), len(ids), missing), per_class, len(ids), missing, versus_first)


def _budget(dataset: str, units: Sequence[_Unit], models: Sequence[Model]) -> Budget:
    """Describe the game of one column, after making sure that it is one."""
    first = units[0]
    threat = first.record.threat
    place = f"{dataset}, {threat.norm} {threat.eps}"
    for unit in units[1:]:
        other = unit.record.threat
        if other.hash != threat.hash:
            difference = first_difference(threat.record, other.record)
            what = f"{difference.field} is {difference.first!r} and {difference.second!r}" if difference else "hashes"
            raise ConfigError(
                f"{place}: {_who(first, models)} and {_who(unit, models)} were attacked in different games ({what}).",
                "Evaluate both under one threat model, or write two reports.",
            )
    attacks = {
        index: sorted(
            (unit.record.attack for unit in units if unit.model == index), key=lambda attack: (attack.name, attack.hash)
        )
        for index in sorted({unit.model for unit in units})
    }
    for index, tried in attacks.items():
        if tried != attacks[first.model]:
            raise ConfigError(
                f'{place}: "{models[first.model].name}" stood {_names(attacks[first.model])}, '
                f'"{models[index].name}" {_names(tried)}.',
                "Run the same attacks with the same settings on every model, or write two reports.",
            )
    return Budget(
        norm=threat.norm,
        eps=threat.eps,
        radius=threat.radius,
        caption=threat.caption,
        threat_hash=threat.hash,
        knowledge=str(threat.record.get("knowledge", "white-box")),
        attacks=tuple(attacks[first.model]),
    )


def _names(attacks: Sequence[AttackInfo]) -> str:
    return ", ".join(f"{attack.label} {attack.settings}" for attack in attacks)


def _who(unit: _Unit, models: Sequence[Model]) -> str:
    return f'"{models[unit.model].name}"'


def _refuse_other_suites(stores: Sequence[RunStore]) -> None:
    first = stores[0]
    for store in stores[1:]:
        if store.run.suite != first.run.suite:
            ours, theirs = (
                f"{one.run.suite.name} {one.run.suite.version}" if one.run.suite else "no suite"
                for one in (first, store)
            )
            raise ConfigError(
                f"{first.path} was evaluated on {ours}, {store.path} on {theirs}: scores change with the suite.",
                "Evaluate both on one version of the suite, or write two reports.",
            )


def _refuse_other_images(units: Sequence[_Unit], models: Sequence[Model]) -> None:
    """Let only such units share a table that differ in nothing but model, threat, attack and seed."""

    def blank(record: UnitRecord) -> UnitRecord:
        reference = units[0].record
        return replace(
            record,
            attack=reference.attack,
            threat=reference.threat,
            model_sha256=reference.model_sha256,
            seed=reference.seed,
        )

    for unit in units[1:]:
        difference = unit_difference(units[0].record, blank(unit.record))
        if difference:
            what = "the images" if difference.field.startswith("sample_ids") else difference.field
            raise ConfigError(
                f"{unit.record.dataset}: {what} of {_who(units[0], models)} at eps {units[0].record.threat.eps} and of "
                f"{_who(unit, models)} at eps {unit.record.threat.eps} are not the same "
                f"({difference.field} is {difference.first!r} and {difference.second!r}).",
                "Evaluate both with the same data, --limit and --seed, or write two reports.",
            )


def _with_holm(tables: Sequence[DatasetTable]) -> tuple[DatasetTable, ...]:
    """Adjust the p values for the number of comparisons in the whole report."""
    raw = [cell.versus_first.p_holm for table in tables for cell in _cells(table) if cell and cell.versus_first]
    adjusted = iter(holm(raw))

    def adjust(cells: Iterable[Cell | None]) -> tuple[Cell | None, ...]:
        return tuple(
            replace(cell, versus_first=replace(cell.versus_first, p_holm=next(adjusted)))
            if cell and cell.versus_first
            else cell
            for cell in cells
        )

    done = []
    for table in tables:
        clean = adjust(table.clean)
        done.append(replace(table, clean=clean, robust=tuple(adjust(row) for row in table.robust)))
    return tuple(done)


def _cells(table: DatasetTable) -> list[Cell | None]:
    return [*table.clean, *(cell for row in table.robust for cell in row)]


def _disagreements(units: Sequence[_Unit], models: Sequence[Model]) -> tuple[str, ...]:
    """Say where the clean answers of one model differ from budget to budget, which only another machine can cause."""
    notes = []
    groups: dict[tuple[str, int], list[_Unit]] = {}
    for unit in units:
        groups.setdefault((unit.record.dataset, unit.model), []).append(unit)
    for (dataset, index), members in groups.items():
        joined = _clean(members)
        unlike = {key for unit in members for key, verdict in unit.clean.items() if verdict != joined[key]}
        if unlike:
            notes.append(
                f'{dataset}: the clean answers of "{models[index].name}" to {len(unlike)} image(s) differ between runs '
                "(another machine or version); those of the smallest budget are shown."
            )
    return tuple(notes)


def _cost(parts: Iterable[Totals]) -> Totals:
    nothing = Totals(n=0, n_invalid=0, n_near_tie=0, n_false_claims=0, forwards=0, backwards=0, seconds=0.0)
    return sum(parts, start=nothing)
