"""The evaluation loop: a suite's data sets, each under each threat model and attack, chunk by chunk into the store."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ironclip.attacks.autoattack import AttackList
from ironclip.attacks.base import Attack
from ironclip.attacks.driver import GRANULE, DriverSettings, fitted
from ironclip.attacks.objectives import Misclassify, predict
from ironclip.attacks.sequence import Member, SequenceOutcome, run_sequence
from ironclip.attacks.threat_model import ThreatModel
from ironclip.data.classes import class_groups, colliding_names
from ironclip.data.contract import Dataset, Sample
from ironclip.data.images import stack_images
from ironclip.data.order import epoch_order, limit, read_batches, shard
from ironclip.errors import ConfigError, DataError
from ironclip.evaluation.describing import acting_pixels, dataset_info, members_of, session, unit_record
from ironclip.evaluation.diagnosis import PROBED, diagnose, open_probe, probed_ids
from ironclip.evaluation.image_files import Adversarials
from ironclip.evaluation.records import ModelInfo, RunRecord, SuiteInfo, UnitRecord, gallery_ids
from ironclip.evaluation.store import RunStore
from ironclip.evaluation.unfinished import Unfinished
from ironclip.models.kernels import choose_kernels
from ironclip.models.sources import load_classifier, load_model, model_identity
from ironclip.models.zero_shot import Classifier, ZeroShotClassifier
from ironclip.suites.suite import SuiteDataset, load_suite

logger = logging.getLogger(__name__)

CHUNK = 256
"""Samples that are attacked together and stored as one file; a kill loses at most one such chunk."""

GALLERY = 16
"""Images kept for the report's gallery, the first by hash of their key."""

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """What to evaluate, on what, against whom.

    Attributes:
        model: Model source, `python:` included.
        suite: Name of a suite, or path of a suite's YAML file.
        data_root: What `{data}` in the suite stands for.
        attacks: Each is a unit of its own, a list of attacks too: each sample has one row for the whole list.
        threats: Each is a unit of its own.
        out: The run folder; a run of the same request goes on where it stopped.
        name: What reports call the model; its source unless given.
        datasets: Names of data sets of the suite; all unless given.
        seed: Of random starts.
        limit: Samples a data set, by hash of their key: the same on every machine.
        device: "cpu", "cuda", "cuda:1".
        tile: Rows a forward; rounded up to a multiple of 16, without influence on results.
        search_dtype: "float32" or "bfloat16"; verdicts are float32 always.
        shard: (i, n): the samples whose hash of the key is i modulo n; `ironclip merge` joins the parts.
        strict: An unreadable sample is fatal, not only counted.
        save: Which images are stored: those of the report's "gallery", "all", or "none".
        verdicts: Give each row its light verdict, which costs some seconds a row.
        compact: Drop broken rows from tiles; without influence on results.
        fast: Use the fast path.
        command: What the user typed, for the record.
    """

    model: str
    suite: str
    data_root: str
    attacks: tuple[Attack | AttackList, ...]
    threats: tuple[ThreatModel, ...]
    out: Path
    name: str | None = None
    datasets: tuple[str, ...] | None = None
    seed: int = 0
    limit: int | None = None
    device: str = "cpu"
    tile: int = 64
    search_dtype: str = "float32"
    shard: tuple[int, int] = (0, 1)
    strict: bool = False
    save: Literal["gallery", "all", "none"] = "gallery"
    verdicts: bool = True
    compact: bool = True
    fast: bool = True
    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvaluationProgress:
    """What a progress display shows.

    Attributes:
        unit: The unit under way.
        done: Its samples with a verdict, those of earlier sittings included.
        total: Its samples in this shard.
        clean_accuracy: Of the samples done in this sitting, None before the first.
        robust_accuracy: Likewise, under the attack.
        standing: Samples of the chunk under way that the attack has not broken yet, None between chunks.
    """

    unit: str
    done: int
    total: int
    clean_accuracy: float | None
    robust_accuracy: float | None
    standing: int | None = None


@dataclass(frozen=True)
class _Task:
    """One data set of the suite, with the model that classifies it.

    Attributes:
        info: The data set as the suite describes it.
        whole: The samples of all shards.
        samples: Those of this shard.
        classifier: Over the data set's classes.
        groups: Lowest index with the same name for each class, None where all names differ.
        probe: `[N, 3, H, W]` and labels `[N]`, the first readable samples, 16 at most.
    """

    info: SuiteDataset
    whole: Dataset
    samples: Dataset
    classifier: Classifier
    groups: Tensor | None
    probe: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _Unit:
    """One data set under one threat model and attack: how a chunk of it becomes rows."""

    request: EvaluationRequest
    task: _Task
    members: tuple[Member, ...]
    threat: ThreatModel
    record: UnitRecord
    settings: DriverSettings

    def attack_chunk(
        self, chunk: str, samples: Sequence[Sample], unfinished: Unfinished, step: Callable[[int, int], None]
    ) -> SequenceOutcome:
        """Attack the samples of a chunk, going on after the last attack of a list that was finished on it.

        Args:
            chunk: Its name.
            samples: What is in it.
            unfinished: Where the attacks of a list leave what they have found.
            step: Told (broken, standing) after each step of each attack.

        Raises:
            DataError: Their images differ in size.
        """
        task = self.task
        labels = torch.tensor([sample.label for sample in samples], device=task.classifier.device)
        keys = [sample.key for sample in samples]
        return run_sequence(
            self.members,
            lambda attack: Misclassify(task.classifier, labels, loss=attack.loss, groups=task.groups),
            self.acting(samples),
            keys,
            self.threat,
            seed=self.request.seed,
            settings=self.settings,
            progress=step,
            begun=unfinished.load(chunk, keys),
            after=lambda outcome: unfinished.save(chunk, keys, outcome),
        )

    def acting(self, samples: Sequence[Sample]) -> Tensor:
        """Return the images on which the adversary acts, `[N, 3, H, W]`."""
        images = [acting_pixels(sample.pixels, self.task.classifier, self.threat) for sample in samples]
        return stack_images(images, self.task.info.name)

    def rows(self, samples: Sequence[Sample], outcome: SequenceOutcome) -> list[dict[str, Any]]:
        """Turn an outcome into rows of the store's schema; margins are positive where the answer is right.

        In a list of attacks a row bears the label of the attack that its image is from, and the name of the list where
        that is the clean image.
        """
        labels = torch.tensor([sample.label for sample in samples])
        clean, final = outcome.clean, outcome.final
        if clean.logits is None or final.logits is None or clean.margin is None or final.margin is None:
            raise TypeError("a classification objective gives logits and margins")
        shared = {
            "target": -1,
            "tile": self.settings.tile,
            "dtype": self.request.search_dtype,
            "threat_hash": self.record.threat.hash,
            "model_sha256": self.record.model_sha256,
            "seed": self.request.seed,
        }
        columns = {
            "y": labels,
            "pred_clean": predict(clean.logits, labels, clean.broken),
            "margin_clean": -clean.margin,
            "pred_adv": predict(final.logits, labels, outcome.broken),
            "margin_adv": -final.margin,
            "broken": outcome.broken,
            "restart": outcome.restart,
            "best_loss": outcome.best_loss,
            "norm": outcome.norm,
            "iterations": outcome.iterations,
            "forwards": outcome.forwards,
            "backwards": outcome.backwards,
            "seconds": outcome.seconds,
            "near_tie": outcome.near_tie,
            "false_claims": outcome.false_claims,
            "invalid": outcome.invalid,
            "logits_clean": clean.logits,
            "logits_adv": final.logits,
        }
        plain = {name: column.tolist() for name, column in columns.items()}
        labels_and_none = [*(member.label for member in self.members), self.record.attack.name]
        losses = [member.attack.loss_used(clean.logits.shape[1]) for member in self.members]
        plain["attack"] = [labels_and_none[member] for member in outcome.member.tolist()]
        plain["loss_used"] = [losses[max(member, 0)] for member in outcome.member.tolist()]
        return [
            {"sample_id": sample.key, **shared, **{name: values[index] for name, values in plain.items()}}
            for index, sample in enumerate(samples)
        ]

    def images(self, samples: Sequence[Sample], outcome: SequenceOutcome) -> Adversarials | None:
        """Return the images to keep, clean as the adversary found them, and as it left them."""
        gallery = set(gallery_ids(self.task.whole.keys, GALLERY)) if self.request.save == "gallery" else set()
        kept = [i for i, s in enumerate(samples) if self.request.save == "all" or s.key in gallery]
        if not kept:
            return None
        return Adversarials(
            keys=[samples[index].key for index in kept],
            clean=self.acting([samples[index] for index in kept]).numpy(),
            adversarial=outcome.adversarial[kept].numpy(),
        )

    def diagnose(self, store: RunStore) -> None:
        """Give the unit its light verdict, from its stored rows and some of its samples."""
        task, rows = self.task, store.read_unit(self.record.unit_id)
        ids = probed_ids(rows, PROBED["light"])
        probe = open_probe(task.info, ids, task.classifier, self.threat, seed=self.request.seed, settings=self.settings)
        store.write_diagnosis(self.record.unit_id, diagnose(probe, rows, self.record, profile="light"))


def evaluate_suite(
    request: EvaluationRequest, *, progress: Callable[[EvaluationProgress], None] | None = None
) -> RunStore:
    """Attack every data set under every threat model with every attack, and store a row a sample.

    Every sample of the (limited, sharded) data set gets a row; one that cannot be read is named in the run's record
    and leaves the unit `partial`.

    Raises:
        ConfigError: Nothing to do, or a precision that the model does not offer.
        DataError: Data are missing, or all samples unreadable.
        ResumeError: `out` holds a run of another model, suite or seed, or a unit with other settings.
    """
    if not request.attacks or not request.threats:
        raise ConfigError("no attack or no threat model was given.", "Give at least one of each.")
    if request.search_dtype not in PRECISIONS:
        raise ConfigError(f'search dtype "{request.search_dtype}".', f"Give one of {', '.join(PRECISIONS)}.")
    for threat in request.threats:
        _refuse_other_games(threat)
        for attack in request.attacks:
            for member in members_of(attack):
                member.attack.check(threat)
    suite = load_suite(request.suite, request.data_root)
    entries = [suite.entry(name) for name in request.datasets] if request.datasets else list(suite.entries)
    infos = [entry.open(strict=request.strict) for entry in entries]
    classifiers = _classifiers(request, infos)
    identity = model_identity(classifiers[0])
    settings = DriverSettings(tile=request.tile, compact=request.compact, search_dtype=PRECISIONS[request.search_dtype])
    tasks = [_task(request, info, classifier) for info, classifier in zip(infos, classifiers, strict=True)]
    for task in tasks:
        for name, labels in colliding_names(task.info.class_names):
            logger.warning('%s: the classes %s share the name "%s".', task.info.name, labels, name)
        for problem in task.info.dataset.problems:
            logger.warning("%s: %s", task.info.name, problem)
    run = RunRecord(
        model=ModelInfo(name=request.name or request.model, source=request.model, sha256=identity),
        suite=SuiteInfo(name=suite.name, version=str(suite.version), sha256=suite.sha256),
        seed=request.seed,
        datasets={task.info.name: dataset_info(task.info) for task in tasks},
        sessions=(),
    )
    store = RunStore.create(request.out, run)
    units = [
        _Unit(request, task, members_of(attack), threat, _recorded(request, task, attack, threat, identity), settings)
        for task in tasks
        for threat in request.threats
        for attack in request.attacks
    ]
    if any(set(unit.task.samples.keys) - store.done_ids(store.open_unit(unit.record)) for unit in units):
        settings, invariance = _fitted(tasks[0], settings)
        units = [dataclasses.replace(unit, settings=settings) for unit in units]
        sitting = session(request.command, request.device, settings, invariance)
        store = RunStore.create(request.out, dataclasses.replace(run, sessions=(sitting,)))
        for unit in units:
            _evaluate_unit(unit, store, progress)
    for unit in units:
        name = unit.record.unit_id
        if request.verdicts and store.diagnosis(name) is None and store.done_ids(name):
            unit.diagnose(store)
    store.write_aggregates()
    return store


def _refuse_other_games(threat: ThreatModel) -> None:
    """Refuse a game that is not the one played here, so that no row is filed under rules that it did not follow."""
    played = {"goal": "untargeted", "knowledge": "white-box", "label_source": "ground truth"}
    for rule, value in played.items():
        if getattr(threat, rule) != value:
            raise ConfigError(
                f'threat.{rule} is "{getattr(threat, rule)}", which evaluate does not play: it plays "{value}".',
                f'Leave threat.{rule} at "{value}".',
            )


def _classifiers(request: EvaluationRequest, infos: Sequence[SuiteDataset]) -> list[Classifier]:
    """Load the model once and make a classifier of it for each data set."""
    if request.model.startswith("python:"):
        return [load_classifier(request.model, i.class_names, i.templates, device=request.device) for i in infos]
    model = load_model(request.model, device=request.device, fast=request.fast)
    choose_kernels(model, request.tile, PRECISIONS[request.search_dtype])
    return [ZeroShotClassifier(model, info.class_names, info.templates) for info in infos]


def _task(request: EvaluationRequest, info: SuiteDataset, classifier: Classifier) -> _Task:
    whole = limit(info.dataset, request.limit) if request.limit is not None else info.dataset
    samples = shard(whole, *request.shard) if request.shard[1] > 1 else whole
    groups = class_groups(info.class_names)
    same = groups == list(range(len(groups)))
    groups_tensor = None if same else torch.tensor(groups, device=classifier.device)
    return _Task(info, whole, samples, classifier, groups_tensor, _first_samples(whole, info.name, request.strict))


def _recorded(
    request: EvaluationRequest, task: _Task, attack: Attack | AttackList, threat: ThreatModel, identity: str
) -> UnitRecord:
    return unit_record(
        task.info,
        task.classifier,
        attack,
        threat,
        image=task.probe[0][0],
        keys=task.whole.keys,
        search_dtype=request.search_dtype,
        model_sha256=identity,
        seed=request.seed,
    )


def _first_samples(dataset: Dataset, name: str, strict: bool) -> tuple[Tensor, Tensor]:
    """Return pixels and labels of the first readable samples that share a size, 16 at most."""
    for batch in read_batches(dataset, range(len(dataset)), GRANULE, strict=strict, unreadable={}):
        if batch:
            alike = [sample for sample in batch if sample.pixels.shape == batch[0].pixels.shape]
            return torch.stack([s.pixels for s in alike]), torch.tensor([s.label for s in alike])
    raise DataError(f"none of the {len(dataset)} samples of {name} can be read.", "Check the data.")


def _evaluate_unit(unit: _Unit, store: RunStore, progress: Callable[[EvaluationProgress], None] | None) -> None:
    """Attack what has no verdict yet, chunk by chunk."""
    name, samples = store.open_unit(unit.record), unit.task.samples
    done, unfinished = store.done_ids(name), Unfinished(store.path / "unfinished" / name)
    unreadable: dict[str, str] = {}
    finished, clean_right, robust_right, counted = len(done & set(samples.keys)), 0, 0, 0

    def show(standing: int | None = None) -> None:
        if progress:
            clean, robust = (right / counted if counted else None for right in (clean_right, robust_right))
            progress(EvaluationProgress(name, finished, len(samples), clean, robust, standing))

    for chunk, batch in _chunks(samples, done, unit.request.strict, unreadable):
        outcome = unit.attack_chunk(chunk, batch, unfinished, lambda broken, standing: show(standing))
        store.write_chunk(name, chunk, unit.rows(batch, outcome), unit.images(batch, outcome))
        unfinished.clear()
        finished, counted = finished + len(batch), counted + len(batch)
        clean_right += int((~outcome.clean.broken).sum())
        robust_right += int((~outcome.broken).sum())
        show()
    unfinished.clear()  # of a chunk that was stored just before a kill
    if unreadable:
        store.note_unreadable(name, unreadable)


def _chunks(
    samples: Dataset, done: set[str], strict: bool, unreadable: dict[str, str]
) -> Iterator[tuple[str, list[Sample]]]:
    """Yield the chunks that are still to do; which samples share a chunk is a function of their keys."""
    order = epoch_order(samples.keys, 0, 0)
    chunks = [order[start : start + CHUNK] for start in range(0, len(order), CHUNK)]
    for number, positions in enumerate(chunks):
        missing = [position for position in positions if samples.keys[position] not in done]
        for batch in read_batches(samples, missing, CHUNK, strict=strict, unreadable=unreadable):
            if batch:
                yield f"{number:05d}", batch


def _fitted(task: _Task, settings: DriverSettings) -> tuple[DriverSettings, float]:
    """Fit the tiles to the machine on the first images of a data set, repeated where they are fewer than 16."""
    pixels, labels = task.probe
    rows = torch.arange(GRANULE) % len(pixels)
    objective = Misclassify(task.classifier, labels[rows].to(task.classifier.device), groups=task.groups)
    return fitted(objective, pixels[rows], settings)
