"""Images with a prompt and what people answer to it: captions, questions about `shapes`, files of questions.

A file of questions holds one JSON object a line, which any set of visual questions is easily brought to:

    {"image": "train2014/000001.jpg", "question": "what color is the car?", "answers": ["red", "red", "dark red"]}

Images are named relative to the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ironclip.data.bundled import shapes
from ironclip.data.contract import Dataset
from ironclip.data.fingerprints import files_fingerprint
from ironclip.data.images import UNREADABLE, open_image, to_pixels
from ironclip.data.sources import open_dataset
from ironclip.errors import ConfigError, DataError, UnreadableSampleError
from ironclip.randomness import rank_of

Asked = Literal["caption", "question"]
QUESTIONS = "questions:"
_SHAPES = "bundled:shapes"
_KEYS = ("image", "question", "answers")


@dataclass(frozen=True)
class PromptedImage:
    """One image with one prompt.

    Attributes:
        key: Stable name.
        pixels: Float32 `[3, H, W]` in [0, 1].
        prompt: What is asked.
        references: What people say, at least one text.
    """

    key: str
    pixels: Tensor
    prompt: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class PromptedSet:
    """Prompted images by position, each read when it is asked for.

    Attributes:
        source: Where they come from.
        fingerprint: sha256 hex of the content.
        keys: One an image.
    """

    source: str
    fingerprint: str
    keys: tuple[str, ...]
    _read: Callable[[int], PromptedImage]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, position: int) -> PromptedImage:
        """Return an image with its prompt.

        Raises:
            UnreadableSampleError: The image cannot be decoded.
            DataError: Nobody says anything of it.
        """
        return self._read(position)

    def limited(self, count: int | None) -> PromptedSet:
        """Take so many, by the hash of their key: the same ones on every machine; all where there are no more."""
        if count is None or count >= len(self):
            return self
        chosen = sorted(sorted(range(len(self)), key=lambda at: rank_of("limit", self.keys[at]))[:count])
        keys = tuple(self.keys[at] for at in chosen)
        return replace(self, keys=keys, _read=lambda position: self._read(chosen[position]))


def open_prompted(source: str, asked: Asked, *, prompt: str) -> PromptedSet:
    """Open images with prompts.

    Args:
        source: A data source with captions; `bundled:shapes?split=…` for questions too; `questions:FILE.jsonl`.
        asked: Ask for a caption, or a question about the image.
        prompt: What asks for a caption.

    Raises:
        ConfigError: Questions are asked of a source that has none.
        DataError: The data are missing or not understood.
    """
    if source.startswith(QUESTIONS):
        if asked == "caption":
            raise ConfigError(f'"{source}" holds questions, and captions are asked for.', "Give images with captions.")
        return _questions_file(source, Path(source.removeprefix(QUESTIONS)))
    data = open_dataset(source, strict=True)
    if asked == "caption":
        return PromptedSet(source, data.fingerprint, tuple(data.keys), lambda at: _captioned(data, at, prompt))
    if not source.startswith(_SHAPES):
        raise ConfigError(
            f'"{source}" brings no questions.',
            f'Ask {_SHAPES}?split=scenes_test, or write a file of questions and give "{QUESTIONS}FILE.jsonl".',
        )
    return PromptedSet(source, data.fingerprint, tuple(data.keys), lambda at: _questioned(data, at))


def _captioned(data: Dataset, position: int, prompt: str) -> PromptedImage:
    sample = data[position]
    if not sample.captions:
        raise DataError(f"{sample.key} of {data.source} has no caption.", "Give data with captions.")
    return PromptedImage(sample.key, sample.pixels, prompt, sample.captions)


def _questioned(data: Dataset, position: int) -> PromptedImage:
    """Ask one of the questions of a scene, chosen by a hash of its key."""
    sample = data[position]
    _, split, index = sample.key.split("/")
    pairs = shapes.questions(shapes.scene(split, int(index)))
    question, answer = pairs[rank_of("question", sample.key) % len(pairs)]
    return PromptedImage(sample.key, sample.pixels, question, (answer,))


def _questions_file(source: str, file: Path) -> PromptedSet:
    if not file.is_file():
        raise DataError(f"there is no file {file}.", "Give a file with one JSON object a line.")
    entries = [_entry(file, number, line) for number, line in enumerate(file.read_text("utf-8").splitlines(), start=1)]
    if not entries:
        raise DataError(f"{file} is empty.", "Write one question a line.")
    keys = tuple(f"{file.stem}/{number:06}" for number in range(len(entries)))
    inside = {image: image.is_relative_to(file.parent) for image, _, _ in entries}
    images = {str(image.relative_to(file.parent) if near else image): image for image, near in inside.items()}

    def read(position: int) -> PromptedImage:
        image, question, answers = entries[position]
        try:
            pixels = to_pixels(open_image(image.read_bytes()))
        except UNREADABLE as error:
            raise UnreadableSampleError(keys[position], f"{image}: {error}") from None
        return PromptedImage(keys[position], pixels, question, answers)

    return PromptedSet(source, files_fingerprint([(file.name, file), *sorted(images.items())]), keys, read)


def _entry(file: Path, number: int, line: str) -> tuple[Path, str, tuple[str, ...]]:
    """Read a line.

    Raises:
        DataError: It is no such object, or its image is not there.
    """
    expected = 'Write {"image": "a.jpg", "question": "what is it?", "answers": ["a cat"]} in one line.'
    try:
        entry: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{file}, line {number}: {error.msg}.", expected) from None
    image, question, answers = (entry.get(key) if isinstance(entry, dict) else None for key in _KEYS)
    words = answers if isinstance(answers, list) else []
    if not (isinstance(image, str) and isinstance(question, str) and question and words):
        raise DataError(f"{file}, line {number} lacks one of {', '.join(_KEYS)}, or it is empty.", expected)
    if not all(isinstance(word, str) and word.strip() for word in words):
        raise DataError(f"{file}, line {number}: an answer is no text, or empty.", expected)
    path = file.parent / image
    if not path.is_file():
        raise DataError(f"{file}, line {number}: there is no image {path}.", "Name images relative to the file.")
    return path, question, tuple(words)
