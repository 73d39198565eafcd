"""A stored run, looked at again: the full verdict on each of its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ironclip.attacks.driver import DriverSettings
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError, DataError, did_you_mean
from ironclip.evaluation.diagnosis import PROBED, diagnose, open_probe, probed_ids, replay
from ironclip.evaluation.diagnostics import Check, Profile
from ironclip.evaluation.probes import Probe
from ironclip.evaluation.records import ThreatInfo, UnitRecord
from ironclip.evaluation.searches import Effort
from ironclip.evaluation.store import RunStore
from ironclip.models.sources import load_classifier, model_identity
from ironclip.suites.suite import Suite, SuiteDataset, load_suite


def diagnose_run(
    path: Path,
    *,
    suite: str | None = None,
    data_root: str = "data",
    datasets: Sequence[str] | None = None,
    surrogates: Sequence[str] = (),
    profile: Profile = "full",
    samples: int | None = None,
    device: str = "cpu",
    tile: int = 64,
    effort: Effort | None = None,
    told: Callable[[str, tuple[str, ...]], None] | None = None,
) -> RunStore:
    """Give rows of a run their verdict, in place of the one they have.

    Args:
        path: The run folder.
        suite: Name or YAML file of the suite that was evaluated; the name on record unless given.
        data_root: What `{data}` in the suite stands for.
        datasets: Names of data sets whose rows are looked at; all that the run has unless given.
        surrogates: Sources of models whose adversarial images are tried on the run's model; without any, the check
            `transfer_stronger` is not run, and no row is trusted.
        profile: Which checks.
        samples: How many to probe of each row; those of the profile unless given.
        device: "cpu", "cuda", "cuda:1".
        tile: Rows a forward.
        effort: Of the searches; the plan's unless given.
        told: Called with unit and verdict as each is stored.

    Raises:
        ConfigError: The run has no suite, the suite is another one now, or the run has no rows of a data set.
        DataError: There is no run, or its model or data are others now.
    """
    store = RunStore.open(path)
    if store.run.suite is None:
        raise ConfigError(f"{path} was evaluated without a suite.", "Evaluate it with one, then diagnose.")
    opened = load_suite(suite or store.run.suite.name, data_root)
    if opened.sha256 != store.run.suite.sha256:
        raise ConfigError(
            f'the suite "{opened.name}" is not the one that {path} was evaluated with: its content differs.',
            "Give the file that was used with --suite, or evaluate again.",
        )
    for info, records in _by_dataset(store, opened, datasets):
        classifier = load_classifier(store.run.model.source, info.class_names, info.templates, device=device)
        if model_identity(classifier) != store.run.model.sha256:
            raise DataError(
                f"{store.run.model.source} is not the model that {path} evaluated: its weights have changed.",
                "Restore it, or evaluate it again.",
            )
        others = [load_classifier(one, info.class_names, info.templates, device=device) for one in surrogates]
        for record in records:
            rows = store.read_unit(record.unit_id)
            probe = open_probe(
                info,
                probed_ids(rows, samples or PROBED[profile]),
                classifier,
                threat_of(record.threat),
                seed=record.seed,
                settings=DriverSettings(tile=tile),
            )
            found = diagnose(
                probe,
                rows,
                record,
                profile=profile,
                surrogates=others,
                replayed=_replayed(store, record, probe),
                effort=effort,
            )
            store.write_diagnosis(record.unit_id, found)
            if told:
                told(record.unit_id, found.verdict)
    store.write_aggregates()
    return store


def threat_of(info: ThreatInfo) -> ThreatModel:
    """Return the game that a record tells of."""
    rules = info.record
    return ThreatModel(
        norm=rules["norm"],
        eps=rules["eps"],
        acting=rules["acting_resolution"],
        **{rule: rules[rule] for rule in ("goal", "knowledge", "label_source", "integer", "adaptive_level")},
    )


def _by_dataset(
    store: RunStore, suite: Suite, datasets: Sequence[str] | None
) -> Iterator[tuple[SuiteDataset, list[UnitRecord]]]:
    """Open each data set that is wanted once, and yield it with its units that have rows."""
    units = [store.record(unit) for unit in store.units() if store.done_ids(unit)]
    there = list(dict.fromkeys(record.dataset for record in units))
    for name in datasets or ():
        if name not in there:
            raise ConfigError(
                f'{store.path} has no rows of "{name}".{did_you_mean(name, there)}', f"It has: {', '.join(there)}."
            )
    for name in there if datasets is None else dict.fromkeys(datasets):
        records = [record for record in units if record.dataset == name]
        info = suite.entry(name).open()
        if any(record.dataset_fingerprint != info.dataset.fingerprint for record in records):
            raise DataError(
                f"the data of {name} are not those that {store.path} evaluated: their content differs.",
                "Restore them, or evaluate again.",
            )
        yield info, records


def _replayed(store: RunStore, record: UnitRecord, probe: Probe) -> Check | None:
    """Look at the stored images again; None where there are none."""
    unit = record.unit_id
    images = store.read_images(unit, store.image_ids(unit))
    if not images:
        return None
    keys = tuple(sorted(images))
    rows = store.read_unit(unit)
    labels = dict(zip(rows["sample_id"].to_pylist(), rows["y"].to_pylist(), strict=True))
    clean, adversarial = (torch.stack([torch.from_numpy(images[key][side]) for key in keys]) for side in (0, 1))
    stored = replace(probe, pixels=clean, labels=torch.tensor([labels[key] for key in keys]), keys=keys)
    return replay(stored, adversarial, rows)
