"""The images that the image tower learns from, in memory, and which of them make up a batch."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ironclip.data.classes import check_class_names
from ironclip.data.contract import Dataset
from ironclip.data.order import epoch_order, hold_out, keep_labels, read_batches
from ironclip.data.sources import open_dataset
from ironclip.errors import ConfigError, DataError
from ironclip.pretraining.phrases import alike, read_class_words
from ironclip.pretraining.recipe import SourceSection
from ironclip.randomness import rank_of

_READ_AT_ONCE = 256


@dataclass(frozen=True)
class Part:
    """The training images of one source.

    Attributes:
        name: In the recipe.
        settings: Of the recipe: share of the batch, augmentation.
        keys: One an image.
        pixels: Uint8 `[N, 3, R, R]`.
        labels: `[N]` int64, or None for captions.
        words: For each class all that it is called; empty for captions.
        templates: Prompts for the words.
        captions: For each image its captions; empty for classes.
    """

    name: str
    settings: SourceSection
    keys: Sequence[str]
    pixels: Tensor
    labels: Tensor | None
    words: Sequence[Sequence[str]]
    templates: Sequence[str]
    captions: Sequence[tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.keys)

    def rows(self, seed: int, step: int) -> tuple[Tensor, list[int]]:
        """Return which images a step takes, and in which epoch of this source each stands: a function of (seed, step).

        Every image is seen once an epoch; a batch may lie across the end of one.
        """
        size = self.settings.per_batch
        places = range(step * size, (step + 1) * size)
        epochs = [place // len(self) for place in places]
        rows = [self._order(seed, epoch)[place % len(self)] for place, epoch in zip(places, epochs, strict=True)]
        return torch.tensor(rows), epochs

    def _order(self, seed: int, epoch: int) -> Sequence[int]:
        return _epoch_order(tuple(self.keys), seed, epoch)


@functools.lru_cache(maxsize=32)
def _epoch_order(keys: tuple[str, ...], seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(epoch_order(keys, seed, epoch))


@dataclass(frozen=True)
class Corpus:
    """All sources.

    Attributes:
        parts: What is trained on.
        held_out: Images of the same classes that are not, for validation; sources with classes only.
        unmet: Images of classes that are not trained on (`held_out_classes`), for the choice of a recipe: labels count
            among these classes alone.
        fingerprint: Of everything read.
        unreadable: Key and reason of what could not be decoded.
    """

    parts: tuple[Part, ...]
    held_out: tuple[Part, ...]
    unmet: tuple[Part, ...]
    fingerprint: str
    unreadable: dict[str, str]


def read_corpus(
    sources: dict[str, SourceSection],
    *,
    data_root: str,
    resolution: int,
    unseen: dict[str, dict[int, list[str]]],
    seed: int,
    strict: bool = False,
) -> Corpus:
    """Open and decode all sources.

    Args:
        sources: By name.
        data_root: What `{data}` stands for.
        resolution: Side that every image has to have.
        unseen: For each source (by name) labels and words of classes that must never be met.
        seed: Of the choice of `held_out_classes`.
        strict: An unreadable image is fatal.

    Raises:
        ConfigError: A source lacks what its settings ask for.
        DataError: Data are missing, of another size, or show a class that must never be met.
    """
    forbidden = {alike(word) for classes in unseen.values() for words in classes.values() for word in words}
    parts, held, unmet, prints = [], [], [], []
    unreadable: dict[str, str] = {}
    for name, settings in sources.items():
        data: Dataset = open_dataset(settings.source.replace("{data}", data_root), strict=strict)
        prints.append(data.fingerprint)
        if settings.captions:
            parts.append(_read(name, settings, data, [], [], resolution, strict, unreadable))
            continue
        data, words, templates = _classes(name, settings, data, data_root)
        _refuse_unseen(name, words, forbidden)
        if settings.held_out_classes:
            count = len(words)
            ranked = sorted(range(count), key=lambda label: rank_of("held-out class", seed, words[label][0]))
            away = sorted(ranked[: settings.held_out_classes])
            stay = [label for label in range(count) if label not in away]
            there = keep_labels(data, away, relabel=True)
            unmet.append(
                _read(name, settings, there, [words[i] for i in away], templates, resolution, strict, unreadable)
            )
            data, words = keep_labels(data, stay, relabel=True), [words[label] for label in stay]
        if settings.hold_out:
            data, kept = hold_out(data, settings.hold_out)
            held.append(_read(name, settings, kept, words, templates, resolution, strict, unreadable))
        parts.append(_read(name, settings, data, words, templates, resolution, strict, unreadable))
    for part in parts:
        if part.settings.per_batch > len(part):
            raise ConfigError(
                f'source "{part.name}" has {len(part)} images, fewer than the {part.settings.per_batch} that a batch '
                "takes of it.",
                "Lower per_batch.",
            )
    return Corpus(tuple(parts), tuple(held), tuple(unmet), " ".join(prints), unreadable)


def _classes(
    name: str, settings: SourceSection, data: Dataset, data_root: str
) -> tuple[Dataset, list[list[str]], list[str]]:
    """Return the data over the classes that occur, what each is called, and the prompts."""
    templates = settings.templates or data.templates
    if data.labels is None or not data.class_names or not templates:
        missing = "labels" if data.labels is None else "class names" if not data.class_names else "templates"
        raise DataError(f'source "{name}" ({data.source}) has no {missing}.', "Set captions: true, or name them.")
    check_class_names(data.class_names, data.labels)
    words: list[list[str]] = [[class_name] for class_name in data.class_names]
    if settings.synonyms is not None:
        more = read_class_words(Path(settings.synonyms.replace("{data}", data_root)))
        for label, own in enumerate(words):
            own += [word for word in more.get(label, ()) if alike(word) not in {alike(known) for known in own}]
    present = sorted(set(data.labels))
    return keep_labels(data, present, relabel=True), [words[label] for label in present], list(templates)


def _refuse_unseen(name: str, words: Sequence[Sequence[str]], forbidden: Collection[str]) -> None:
    met = [word for own in words for word in own if alike(word) in forbidden]
    if met:
        raise DataError(
            f'source "{name}" shows "{met[0]}", a class that pre-training must never meet.',
            "Read a split without it; unseen_classes.json lists them.",
        )


def _read(
    name: str,
    settings: SourceSection,
    data: Dataset,
    words: Sequence[Sequence[str]],
    templates: Sequence[str],
    resolution: int,
    strict: bool,
    unreadable: dict[str, str],
) -> Part:
    keys, pixels, labels, captions = [], [], [], []
    for batch in read_batches(data, range(len(data)), _READ_AT_ONCE, strict=strict, unreadable=unreadable):
        for sample in batch:
            if sample.pixels.shape[-2:] != (resolution, resolution):
                height, width = sample.pixels.shape[-2:]
                raise DataError(
                    f"{sample.key} is {width}x{height}, expected {resolution}x{resolution}.",
                    f'Add the option resize={resolution} to source "{name}".',
                )
            keys.append(sample.key)
            pixels.append((sample.pixels * 255).round().to(torch.uint8))
            labels.append(sample.label)
            captions.append(sample.captions)
    if settings.captions and not all(captions):
        raise DataError(f'source "{name}" has images without captions.', "Set captions: false, or read other data.")
    return Part(
        name=name,
        settings=settings,
        keys=keys,
        pixels=torch.stack(pixels),
        labels=None if settings.captions else torch.tensor(labels),
        words=words,
        templates=templates,
        captions=captions if settings.captions else (),
    )
