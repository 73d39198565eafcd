"""Bundled pictures to pick from, each with class names that fit it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ironclip.data.contract import Sample
from ironclip.data.sources import open_dataset


@dataclass(frozen=True)
class Specimen:
    """A picture of a bundled set.

    Attributes:
        name: Of its class, and a safe file name.
        classes: What it may be taken for, the right one among them.
        image: 32 x 32 pixels.
    """

    name: str
    classes: tuple[str, ...]
    image: Image.Image

    def save(self, folder: Path) -> Path:
        """Write it as PNG and return the file's path."""
        path = folder / f"{self.name.replace(' ', '-')}.png"
        self.image.save(path)
        return path


def specimens(count: int = 4) -> list[Specimen]:
    """Return the first `count` digits and shapes of different classes; no training showed them."""
    return [*_of("bundled:digits?split=test", count), *_of("bundled:shapes?split=heldout", count)]


def _of(source: str, count: int) -> list[Specimen]:
    data = open_dataset(source)
    names = tuple(data.class_names or ())
    found: dict[str, Specimen] = {}
    for index in range(len(data)):
        sample = data[index]
        if sample.label is not None and names[sample.label] not in found:
            name = names[sample.label]
            found[name] = Specimen(name, _rivals(name, names), _image(sample))
        if len(found) == count:
            break
    return list(found.values())


def _rivals(name: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the classes of the same first word ("red star": all that is red), or all where there is only one."""
    near = tuple(other for other in names if other.split()[0] == name.split()[0])
    return near if len(near) > 1 else tuple(names)


def _image(sample: Sample) -> Image.Image:
    levels = np.rint(sample.pixels.numpy() * 255).astype(np.uint8)
    return Image.fromarray(levels.transpose(1, 2, 0))
