"""`bundled:NAME?split=SPLIT`: the small sets that come with IronCLIP, `digits` and `shapes`.

`digits` has the splits `train` and `test`. `shapes` has `train`, `test` and `heldout` (one object, labelled; `heldout`
shows only pairs of colour and shape that no training image shows) and `scenes_train`, `scenes_test` (one to three
objects, captions only).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from ironclip.data.bundled import digits, shapes
from ironclip.data.contract import Sample
from ironclip.data.fingerprints import fingerprint
from ironclip.data.images import Resizing
from ironclip.data.options import ReaderOptions
from ironclip.data.stored import Columns, StoredDataset
from ironclip.errors import ConfigError, did_you_mean
from ironclip.randomness import rank_of

# A generator that changes, changes these too; to paint all images takes seconds.
_FINGERPRINTED = 256


@dataclass(frozen=True, kw_only=True)
class BundledOptions(ReaderOptions):
    """Options of `bundled:`."""


class DigitsDataset(StoredDataset):
    """One split of `digits`, its fingerprint over all of it."""

    def __init__(self, source: str, split: str, resizing: Resizing) -> None:
        data = digits.load_split(split)
        columns = Columns(
            source=source,
            keys=data.keys,
            labels=data.labels,
            class_names=digits.CLASS_NAMES,
            templates=digits.TEMPLATES,
            content=fingerprint([*data.keys, str(data.labels), _sha256(data.images)]),
        )
        super().__init__(columns, resizing)
        self._images = data.images

    def _image(self, position: int) -> Image.Image:
        return Image.fromarray(self._images[position])


class ShapesDataset(StoredDataset):
    """One split of `shapes`, each sample made when it is asked for.

    The fingerprint covers all labels, and pixels and captions of the 256 samples whose keys have the lowest hash.
    """

    def __init__(self, source: str, split: str, resizing: Resizing) -> None:
        spec = shapes.SPLITS[split]
        self._split, self._indices = split, range(spec.count)
        labelled = spec.most_objects == 1
        labels = [shapes.label(split, index) for index in self._indices] if labelled else None
        keys = [shapes.key_of(split, index) for index in self._indices]
        columns = Columns(
            source=source,
            keys=keys,
            labels=labels,
            class_names=shapes.CLASS_NAMES if labelled else None,
            templates=shapes.TEMPLATES if labelled else None,
            content=fingerprint([split, str(spec.count), str(labels), *self._probe(keys)]),
        )
        super().__init__(columns, resizing)

    def __getitem__(self, position: int) -> Sample:
        """Return the sample, painted and described now."""
        sample = super().__getitem__(position)
        return dataclasses.replace(sample, captions=(shapes.caption(self._scene(position)),))

    def _image(self, position: int) -> Image.Image:
        return Image.fromarray(self._scene(position).pixels)

    def _scene(self, position: int) -> shapes.Scene:
        return shapes.scene(self._split, self._indices[position])

    def _probe(self, keys: list[str]) -> list[str]:
        """Return a line of key, sha256 of the pixels and caption for some samples."""
        probed = sorted(self._indices, key=lambda index: rank_of("fingerprint", keys[index]))[:_FINGERPRINTED]
        scenes = [self._scene(index) for index in probed]
        return [f"{scene.key} {_sha256(scene.pixels)} {shapes.caption(scene)}" for scene in scenes]


_SETS: dict[str, tuple[Collection[str], Callable[[str, str, Resizing], StoredDataset]]] = {
    "digits": (digits.SPLITS, DigitsDataset),
    "shapes": (shapes.SPLITS, ShapesDataset),
}


def open_bundled(source: str, where: str, options: BundledOptions) -> StoredDataset:
    """Open a bundled set by name.

    Raises:
        ConfigError: No such set, or the split is missing or unknown.
    """
    if where not in _SETS:
        raise ConfigError(f'no bundled set "{where}".{did_you_mean(where, _SETS)}', f"There are: {', '.join(_SETS)}.")
    splits, dataset = _SETS[where]
    names = ", ".join(splits)
    if options.split is None:
        raise ConfigError(f"bundled:{where} has several splits: {names}.", "Say which one, such as ?split=test.")
    if options.split not in splits:
        raise ConfigError(
            f'no split "{options.split}" in bundled:{where}.{did_you_mean(options.split, splits)}', f"It has: {names}."
        )
    return dataset(source, options.split, options.resizing())


def _sha256(levels: npt.NDArray[np.uint8]) -> str:
    return hashlib.sha256(levels.tobytes()).hexdigest()
