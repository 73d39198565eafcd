"""Load a suite: one YAML file that says what is measured, and under which words.

A suite fixes samples (source, labels kept, count, sha256 of the shards or fingerprint of the whole), class names,
templates and metrics; its hash covers all of them and nothing else, so titles and notes may be mended. Anything that
moves a score raises `version`. A class list lies in `classes/`, a file of its own with the sha256 of its names; where
none can be shipped, `classes: data` takes the names that come with the data, so many as `class_count` says.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import pydantic

from ironclip.data.classes import check_class_names, fill_templates, words_sha256
from ironclip.data.order import Subset, keep_labels
from ironclip.data.sources import open_dataset
from ironclip.data.stored import StoredDataset
from ironclip.data.wds import WdsDataset
from ironclip.errors import ConfigError, DataError, IronClipError, RegistryError, did_you_mean
from ironclip.plain_yaml import read_yaml_file
from ironclip.registry import build

_HERE = Path(__file__).parent
_M = TypeVar("_M", bound=pydantic.BaseModel)

Metric = Literal["top1", "mean_per_class"]


class _ClassList(pydantic.BaseModel):
    """A file of class names; `groups` names sets of labels, such as the unseen classes."""

    source: str
    count: int
    sha256: str
    groups: dict[str, tuple[int, ...]] = {}
    names: tuple[str, ...]


class EntrySpec(pydantic.BaseModel):
    """One data set of a suite, as written."""

    name: str
    title: str
    source: str
    headline: bool = False
    classes: str
    class_count: pydantic.PositiveInt | None = None
    keep_labels: str | None = None
    names: Literal["all", "kept"] = "all"
    templates: tuple[str, ...]
    metrics: tuple[Metric, ...] = pydantic.Field(default=("top1",), min_length=1)
    count: pydantic.PositiveInt | None = None
    sha256: dict[str, str] = {}
    fingerprint: str | None = None
    coding: str = ""
    note: str = ""
    fetch: str = ""


class _SuiteFile(pydantic.BaseModel):
    """A suite, as written."""

    name: str
    version: pydantic.PositiveInt
    title: str
    data: tuple[dict[str, Any], ...] = pydantic.Field(min_length=1)


@dataclass(frozen=True, kw_only=True)
class SuiteDataset:
    """A data set of a suite, opened.

    Attributes:
        name: What rows are stored under ("tiny-imagenet-unseen-20way").
        title: What tables show.
        dataset: The samples; labels index `class_names`.
        class_names: The words that an image is told apart by, more than its labels where unseen classes stand
            among all names.
        templates: Prompt templates, their text features averaged.
        metrics: The first is the leading one.
        headline: Whether it belongs in the first table of a report.
        coding: How the stored pixels differ from the original ones.
        note: What a reader of the numbers should know.
    """

    name: str
    title: str
    dataset: Subset
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    metrics: tuple[Metric, ...]
    headline: bool
    coding: str
    note: str

    @property
    def chance(self) -> float:
        """Accuracy of uniform guessing, by either metric."""
        return 1 / len(self.class_names)


@dataclass(frozen=True)
class SuiteEntry:
    """A data set of a suite, not opened yet.

    Attributes:
        suite: Name of the suite.
        spec: The entry as written.
        data_root: What `{data}` in its source stands for.
        kept: The labels that are kept, or None for all.
        class_names: The words of the task; empty where they come with the data.
    """

    suite: str
    spec: EntrySpec
    data_root: Path
    kept: tuple[int, ...] | None
    class_names: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return the name that rows are stored under."""
        return self.spec.name

    @property
    def headline(self) -> bool:
        """Return whether it belongs in the first table of a report."""
        return self.spec.headline

    @property
    def source(self) -> str:
        """Return the source with the data root filled in."""
        return self.spec.source.replace("{data}", str(self.data_root))

    def content(self) -> dict[str, Any]:
        """Return everything of the entry that decides a score."""
        prose = {"title", "classes", "keep_labels", "coding", "note", "fetch"}
        # Without them the hash is that of the versions which knew none.
        absent = {name for name in ("fingerprint", "class_count") if getattr(self.spec, name) is None}
        written = self.spec.model_dump(mode="json", exclude=prose | absent)
        return written | {"kept": self.kept, "class_names": self.class_names}

    def open(self, *, strict: bool = False) -> SuiteDataset:
        """Open the data and check that they are the ones that the suite means.

        Args:
            strict: Refuse data of which anything is lost.

        Raises:
            DataError: They are missing, not labelled, not of the stated sha256, fingerprint or count, or do not fit
                the names.
        """
        try:
            stored = open_dataset(self.source, strict=strict)
            self._check_shards(stored)
            self._check_fingerprint(stored)
            named = self if self.class_names else replace(self, class_names=self._names_of(stored))
            dataset = named._select(stored)
            check_class_names(named.class_names, dataset.labels or ())
            self._check_count(dataset)
        except DataError as error:
            place = f" The suite looks for its data under {self.data_root}." if "{data}" in self.spec.source else ""
            if self.spec.fetch:
                place += f" To fetch them: {self.spec.fetch.replace('{data}', str(self.data_root))}"
            raise DataError(
                f'suite "{self.suite}", data set "{self.name}": {error.problem}', f"{error.remedy}{place}"
            ) from error
        spec = self.spec
        return SuiteDataset(
            name=spec.name,
            title=spec.title,
            dataset=dataset,
            class_names=named.class_names,
            templates=spec.templates,
            metrics=spec.metrics,
            headline=spec.headline,
            coding=spec.coding,
            note=spec.note,
        )

    def _names_of(self, stored: StoredDataset) -> tuple[str, ...]:
        """Return the class names that come with the data; underscores and slashes, which are no words, as spaces."""
        if stored.class_names is None:
            raise DataError(f"{stored.source} brings no class names.", "Put them beside the data, one a line.")
        if len(stored.class_names) != self.spec.class_count:
            raise DataError(
                f"{len(stored.class_names)} class names come with the data, expected {self.spec.class_count}.",
                "Check that the data are complete and no others.",
            )
        return tuple(" ".join(re.split(r"[_/\s]+", name)).strip() for name in stored.class_names)

    def _select(self, stored: StoredDataset) -> Subset:
        if stored.labels is None:
            raise DataError(f"{stored.source} has no labels.", "A suite needs labelled data.")
        kept = sorted(set(stored.labels)) if self.kept is None else self.kept
        chosen = keep_labels(stored, kept, relabel=self.spec.names == "kept")
        return Subset(
            stored,
            chosen.positions,
            labels=chosen.labels,
            class_names=self.class_names,
            templates=self.spec.templates,
        )

    def _check_shards(self, stored: StoredDataset) -> None:
        if not self.spec.sha256 or not isinstance(stored, WdsDataset):
            return
        found = {shard.name: shard.sha256 for shard in stored.shards}
        for name in sorted(found.keys() | self.spec.sha256.keys()):
            expected = self.spec.sha256.get(name)
            if found.get(name) != expected:
                raise DataError(
                    f"shard {name}: sha256 {found.get(name, 'none, it is missing')}, "
                    f"expected {expected or 'no such shard'}.",
                    "Numbers of a suite hold for the stated bytes only: fetch the data again, or raise the suite's "
                    "version with new hashes.",
                )

    def _check_fingerprint(self, stored: StoredDataset) -> None:
        if self.spec.fingerprint not in (None, stored.fingerprint):
            raise DataError(
                f"{stored.source} has the fingerprint {stored.fingerprint}, expected {self.spec.fingerprint}.",
                "Numbers of a suite hold for the stated content only: bring it back, or raise the suite's version "
                "with the new fingerprint.",
            )

    def _check_count(self, dataset: Subset) -> None:
        # Samples that opening has lost are on record already, and are not a reason to stop.
        if self.spec.count in (None, len(dataset)) or dataset.problems:
            return
        raise DataError(
            f"{len(dataset)} samples, expected {self.spec.count}.", "Check that the data are complete and no others."
        )


@dataclass(frozen=True)
class Suite:
    """A suite and where its data lie.

    Attributes:
        name: Its name.
        version: Rises with anything that moves a score.
        title: What a report is headed with.
        entries: Its data sets, in the order of reports.
    """

    name: str
    version: int
    title: str
    entries: tuple[SuiteEntry, ...]

    @cached_property
    def sha256(self) -> str:
        """Return the hash of everything that decides a score: not of titles, notes or the data root."""
        content = {"name": self.name, "version": self.version, "data": [entry.content() for entry in self.entries]}
        return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    def entry(self, name: str) -> SuiteEntry:
        """Return a data set by name.

        Raises:
            RegistryError: There is none; near names are shown.
        """
        by_name = {entry.name: entry for entry in self.entries}
        if name not in by_name:
            raise RegistryError(
                f'the suite "{self.name}" has no data set "{name}".{did_you_mean(name, by_name)}',
                f"It has: {', '.join(by_name)}.",
            )
        return by_name[name]


def suite_names() -> list[str]:
    """Return the names of the suites that come with IronCLIP."""
    return sorted(path.stem for path in _HERE.glob("*.yaml"))


def load_suite(name_or_path: str | Path, data_root: str | Path) -> Suite:
    """Read a suite; no data are touched yet.

    Args:
        name_or_path: A name of `suite_names()`, or the path of a YAML file.
        data_root: The folder that `{data}` in sources stands for.

    Raises:
        RegistryError: No suite or class list has this name; near names are shown.
        ConfigError: The file is missing or wrong; all its problems at once.
    """
    path = _find(str(name_or_path), "suite", _HERE, Path())
    raw = _read_yaml(path)
    suite = build(_SuiteFile, raw, where=path.name)
    entries, problems = [], []
    for index, written in enumerate(suite.data):
        where = f"{path.name}.data[{index}]"
        try:
            entries.append(
                _resolve(build(EntrySpec, written, where=where), suite.name, path, Path(data_root).expanduser())
            )
        except IronClipError as error:
            problems.append(f"{error.problem} {error.remedy}")
    names = [entry.name for entry in entries]
    problems += [f'two data sets are called "{name}".' for name in sorted({n for n in names if names.count(n) > 1})]
    if problems:
        raise ConfigError("\n".join(problems), f"Mend {path}.")
    return Suite(suite.name, suite.version, suite.title, tuple(entries))


def _resolve(entry: EntrySpec, suite: str, path: Path, data_root: Path) -> SuiteEntry:
    """Look up the class list and the labels that are kept, and try the templates."""
    if entry.classes == "data":
        if entry.class_count is None or entry.keep_labels is not None:
            raise ConfigError(
                f"{entry.name}: classes: data wants class_count, and cannot have keep_labels.",
                "Say how many classes there are, or name a class list.",
            )
        fill_templates("class", entry.templates)
        return SuiteEntry(suite, entry, data_root, None, ())
    classes = _read_classes(_find(entry.classes, "class list", _HERE / "classes", path.parent))
    kept = None
    if entry.keep_labels is not None:
        if entry.keep_labels not in classes.groups:
            raise ConfigError(
                f'{entry.name}: no group of labels "{entry.keep_labels}" in the class list {entry.classes}.'
                f"{did_you_mean(entry.keep_labels, classes.groups)}",
                f"It has: {', '.join(classes.groups) or 'none'}.",
            )
        kept = classes.groups[entry.keep_labels]
    elif entry.names == "kept":
        raise ConfigError(f"{entry.name}: names: kept without keep_labels.", "Say which labels, or write names: all.")
    if entry.sha256 and not entry.source.startswith("wds:"):
        raise ConfigError(
            f"{entry.name}: sha256 with {entry.source}.", "Only shards (wds:) have hashes: write fingerprint instead."
        )
    names = tuple(classes.names[label] for label in kept) if kept and entry.names == "kept" else classes.names
    fill_templates(names[0], entry.templates)
    return SuiteEntry(suite, entry, data_root, kept, names)


def _read_classes(path: Path) -> _ClassList:
    classes = build(_ClassList, _read_yaml(path), where=path.name)
    problems = []
    if len(classes.names) != classes.count:
        problems.append(f"{len(classes.names)} names, count says {classes.count}.")
    if words_sha256(classes.names) != classes.sha256:
        problems.append(f"the names have sha256 {words_sha256(classes.names)}, sha256 says {classes.sha256}.")
    for group, labels in classes.groups.items():
        if len(set(labels)) < len(labels) or not set(labels) <= set(range(len(classes.names))):
            problems.append(f"the group {group} has labels that are given twice or have no name.")
    if problems:
        raise ConfigError(f"class list {path.name}: {' '.join(problems)}", "Undo the change, or mend both sides.")
    return classes


def _find(name: str, kind: str, shipped: Path, beside: Path) -> Path:
    """Return the file of a shipped name, or a path (one that ends in .yaml), relative to `beside`."""
    if name.endswith((".yaml", ".yml")):
        path = beside / Path(name).expanduser()
        if not path.is_file():
            raise ConfigError(f"no {kind} file {path}.", f"Relative paths start at {beside.resolve()}.")
        return path
    known = sorted(path.stem for path in shipped.glob("*.yaml"))
    if name not in known:
        raise RegistryError(
            f'unknown {kind} "{name}".{did_you_mean(name, known)}',
            f"Give one of {', '.join(known)}, or the path of a .yaml file.",
        )
    return shipped / f"{name}.yaml"


def _read_yaml(path: Path) -> Mapping[str, Any]:
    content = read_yaml_file(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no keys with values.", "Compare with a suite that comes with IronCLIP.")
    return content
