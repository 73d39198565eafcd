"""What a stored number is about: the run, and its units (one data set, one threat model, one attack).

Two records may be joined, resumed or compared only where they describe the same game; the functions at the end name
the first field that differs. Source: evaluation plan 1.6 and 6.7. What may differ between two sittings of one run
(machine, tile, versions) is kept apart, in `Session`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import pydantic

from ironclip.errors import ConfigError
from ironclip.randomness import rank_of

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """The model of a run.

    Attributes:
        name: What reports call it.
        source: The string that it was loaded from.
        sha256: Hash of its weights.
    """

    name: str
    source: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class SuiteInfo:
    """The suite of a run; a score changes only with its version."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What a report needs to know of a data set, so that it never opens one.

    Attributes:
        title: Name for readers ("CIFAR-10").
        source: The string that it was opened from.
        class_names: In label order.
        metric: `mean_per_class` where the mean over classes is shown beside the share of images.
        problems: What was lost when it was opened, in words; its samples are not among those declared.
    """

    title: str
    source: str
    class_names: tuple[str, ...]
    metric: Literal["top1", "mean_per_class"] = "top1"
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AttackInfo:
    """An attack by its registered name and all its settings, defaults too; or a list of attacks.

    Attributes:
        name: Of the attack, or of the list.
        settings: Of the attack; a list has none of its own.
        title: What readers call it, where that is not its label by name and steps.
        members: Of a list, in order.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    title: str = ""
    members: tuple[AttackInfo, ...] = ()

    @property
    def hash(self) -> str:
        """Of the name and all settings: tells two settings of one attack apart."""
        content = [self.name, self.settings, *(member.hash for member in self.members)]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def label(self) -> str:
        """Name for readers: `PGD-20`, `AutoAttack standard`."""
        if self.title:
            return self.title
        steps = self.settings.get("steps")
        return self.name.upper() if steps is None else f"{self.name.upper()}-{steps}"


@dataclass(frozen=True, kw_only=True)
class ThreatInfo:
    """A threat model as its own `record()` gives it.

    Attributes:
        record: At least `norm` ("linf") and `eps` ("2/255").
        hash: Decides what may share a column of a table.
        caption: The record in one line.
    """

    record: dict[str, Any]
    hash: str
    caption: str

    @property
    def norm(self) -> str:
        """`linf` or `l2`."""
        return str(self._entry("norm"))

    @property
    def eps(self) -> str:
        """The radius as it was given: `2/255`."""
        return str(self._entry("eps"))

    @property
    def radius(self) -> Fraction:
        """The radius as an exact number.

        Raises:
            ConfigError: `eps` is no number.
        """
        try:
            return Fraction(self.eps)
        except (ValueError, ZeroDivisionError):
            raise ConfigError(
                f'the threat model "{self.caption}" stores eps = {self.eps!r}, expected a fraction such as "2/255".',
                "Evaluate again with this version.",
            ) from None

    def _entry(self, key: str) -> Any:
        if key not in self.record:
            raise ConfigError(
                f'the stored threat model "{self.caption}" has no "{key}".', "Evaluate again with this version."
            )
        return self.record[key]


@dataclass(frozen=True, kw_only=True)
class SampleIds:
    """The samples that a unit is declared over: how many, and the hash of their sorted list."""

    count: int
    sha256: str

    @classmethod
    def of(cls, ids: Iterable[str]) -> SampleIds:
        """Return the declaration of these samples."""
        ordered = sorted(ids)
        return cls(count=len(ordered), sha256=hashlib.sha256("\n".join(ordered).encode()).hexdigest())


@dataclass(frozen=True, kw_only=True)
class UnitRecord:
    """One data set, attacked under one threat model by one attack.

    Attributes:
        dataset: Its name in the suite; a key of `RunRecord.datasets`.
        dataset_fingerprint: sha256 of the content.
        class_list_sha256: Of the class names in label order.
        prompt_set_sha256: Of the prompts.
        duplicates: Class names that occur more than once (two logits that are equal for ever).
        attack: Name and settings.
        threat: Record, hash and caption.
        model_sha256: Of the weights.
        seed: Of the run.
        sample_ids: The samples to evaluate, over all shards.
        n_total: Size of the data set that they were taken from.
        parity: `none`, or the repository whose protocol was followed.
    """

    dataset: str
    dataset_fingerprint: str
    class_list_sha256: str
    prompt_set_sha256: str
    duplicates: tuple[str, ...] = ()
    attack: AttackInfo
    threat: ThreatInfo
    model_sha256: str
    seed: int
    sample_ids: SampleIds
    n_total: int
    parity: str = "none"

    @property
    def unit_id(self) -> str:
        """`DATASET--ATTACK--SETTINGSHASH--THREATHASH`, safe as a file name."""
        parts = (self.dataset, self.attack.name, self.attack.hash[:4], self.threat.hash[:8])
        return "--".join(re.sub(r"[^A-Za-z0-9._-]+", "_", part) for part in parts)


@dataclass(frozen=True, kw_only=True)
class Session:
    """One sitting of a run: what was typed, where, and with which versions.

    Attributes:
        command: The command line.
        versions: Package to version.
        device: Type and name.
        tile: Rows computed at a time; not allowed to matter.
        row_invariance: Largest difference of a row among other neighbours, 0 where rows are bit-identical.
        created: Start, ISO 8601.
    """

    command: str
    versions: dict[str, str]
    device: str
    tile: int
    row_invariance: float
    created: str


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The content of `run.json`: one model, evaluated on some data sets.

    Attributes:
        model: Name, source, hash.
        suite: None for data sets that were named one by one.
        seed: Of the run.
        datasets: By their names in the suite.
        sessions: Sittings, the first first.
        units: By unit id; filled by the store.
        unreadable: By unit id: samples that could not be decoded, with the reason; filled by the store.
        schema_version: Of this record and of the rows.
    """

    model: ModelInfo
    suite: SuiteInfo | None
    seed: int
    datasets: dict[str, DatasetInfo]
    sessions: tuple[Session, ...]
    units: dict[str, UnitRecord] = field(default_factory=dict)
    unreadable: dict[str, dict[str, str]] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


class Difference(NamedTuple):
    """A field that two records give differently (`threat.record.eps`), with both values."""

    field: str
    first: Any
    second: Any


def unit_difference(first: UnitRecord, second: UnitRecord) -> Difference | None:
    """Return the first field in which two units differ, or None."""
    return first_difference(_plain(first), _plain(second))


def run_difference(first: RunRecord, second: RunRecord) -> Difference | None:
    """Return the first field that keeps two runs from being one (model, suite, seed), or None; units follow apart."""

    def identity(run: RunRecord) -> dict[str, Any]:
        return {"model": {"sha256": run.model.sha256}, "suite": run.suite and _plain(run.suite), "seed": run.seed}

    return first_difference(identity(first), identity(second))


def first_difference(first: Any, second: Any, path: str = "") -> Difference | None:
    """Return the first leaf in which two JSON values differ, its place as `a.b`; or None."""
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return None if first == second else Difference(path, first, second)
    for key in [*first, *(key for key in second if key not in first)]:
        place = f"{path}.{key}" if path else str(key)
        found = first_difference(first.get(key), second.get(key), place)
        if found:
            return found
    return None


def gallery_ids(sample_ids: Iterable[str], count: int) -> list[str]:
    """Return the samples that galleries show: the first by a hash of their key, so that nobody chose them."""
    return sorted(sample_ids, key=lambda sample_id: rank_of("gallery", sample_id))[:count]


def _plain(record: Any) -> dict[str, Any]:
    """Give a record as it looks after a round trip through JSON (tuples as lists)."""
    plain: dict[str, Any] = pydantic.TypeAdapter(type(record)).dump_python(record, mode="json")
    return plain
