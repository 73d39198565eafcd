"""What tiny-vlm is taught: images with captions, and questions about shapes with their answers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ironclip.data.bundled import shapes
from ironclip.data.order import epoch_order, read_batches
from ironclip.data.sources import open_dataset
from ironclip.errors import ConfigError, DataError
from ironclip.models.vlm import CAPTION_PROMPT
from ironclip.pretraining.vlm.recipe import SourceSection
from ironclip.randomness import digest

_READ_AT_ONCE = 256


@dataclass(frozen=True)
class Material:
    """One source, decoded.

    Attributes:
        name: As in the recipe.
        keys: One an image.
        pixels: uint8 `[N, 3, R, R]`.
        captions: For each image, in the source's order.
        questions: For each image its questions with answers; empty where none are asked.
        settings: Its section of the recipe.
    """

    name: str
    keys: tuple[str, ...]
    pixels: Tensor
    captions: Sequence[Sequence[str]]
    questions: Sequence[Sequence[tuple[str, str]]]
    settings: SourceSection

    def texts(self) -> list[str]:
        """Return everything that is asked and said here."""
        asked = [text for own in self.questions for pair in own for text in pair]
        return [*asked, *(caption for own in self.captions for caption in own)]


@dataclass(frozen=True)
class Batch:
    """Images `[B, 3, R, R]` in [0, 1], with a prompt and its answer each."""

    pixels: Tensor
    prompts: list[str]
    answers: list[str]


def read_material(
    name: str,
    settings: SourceSection,
    *,
    data_root: str,
    resolution: int,
    unreadable: dict[str, str],
    strict: bool = False,
) -> tuple[Material, str]:
    """Decode a source.

    Args:
        name: As in the recipe.
        settings: Its section.
        data_root: What `{data}` stands for.
        resolution: Side that every image has to have.
        unreadable: Receives key and reason of each image that cannot be read.
        strict: An unreadable image is fatal.

    Returns:
        The material, and the fingerprint of the data.

    Raises:
        ConfigError: Fewer images than a batch takes.
        DataError: The data are missing, of another size, or without captions.
    """
    data = open_dataset(settings.source.replace("{data}", data_root), strict=strict)
    keys, pixels, captions = [], [], []
    for batch in read_batches(data, range(len(data)), _READ_AT_ONCE, strict=strict, unreadable=unreadable):
        for sample in batch:
            if sample.pixels.shape[-2:] != (resolution, resolution):
                height, width = sample.pixels.shape[-2:]
                raise DataError(
                    f"{sample.key} is {width}x{height}, expected {resolution}x{resolution}.",
                    f'Add the option resize={resolution} to source "{name}".',
                )
            if not sample.captions:
                raise DataError(f'{sample.key} of source "{name}" has no caption.', "Read data with captions.")
            keys.append(sample.key)
            pixels.append((sample.pixels * 255).round().to(torch.uint8))
            captions.append(tuple(sample.captions))
    if len(keys) < settings.per_batch:
        raise ConfigError(
            f'source "{name}" has {len(keys)} images, fewer than the {settings.per_batch} that a batch takes of it.',
            "Lower per_batch.",
        )
    questions = [shapes.questions(_scene(key)) for key in keys] if settings.questions else [[] for _ in keys]
    return Material(name, tuple(keys), torch.stack(pixels), captions, questions, settings), data.fingerprint


def draw(materials: Sequence[Material], seed: int, step: int) -> Batch:
    """Draw the batch of a step: a function of its arguments only.

    Each source goes through its images in an order of its own, epoch by epoch.
    """
    pixels, prompts, answers = [], [], []
    for material in materials:
        count, total = material.settings.per_batch, len(material.keys)
        random = np.random.Generator(np.random.Philox(key=int.from_bytes(digest(seed, material.name, step), "big")))
        for place in range(step * count, (step + 1) * count):
            row = _order(material.keys, seed, place // total)[place % total]
            own = material.questions[row]
            chosen, asks = random.random(), random.random() < material.settings.questions
            pairs = own if asks and own else [(CAPTION_PROMPT, caption) for caption in material.captions[row]]
            prompt, answer = pairs[int(chosen * len(pairs))]
            pixels.append(material.pixels[row])
            prompts.append(prompt)
            answers.append(answer)
    return Batch(torch.stack(pixels).float() / 255, prompts, answers)


@functools.lru_cache(maxsize=16)
def _order(keys: tuple[str, ...], seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(epoch_order(keys, seed, epoch))


def _scene(key: str) -> shapes.Scene:
    _, split, index = key.split("/")
    return shapes.scene(split, int(index))
