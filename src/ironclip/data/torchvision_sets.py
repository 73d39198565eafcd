"""`torchvision:NAME?root=FOLDER&split=SPLIT`: the classification sets of torchvision.

Nothing is fetched unless `download=true`. `split` is what torchvision calls it; for its sets that ask `train=True or
False` it is `train` or `test`; sets without a split take none.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ironclip.data.fingerprints import fingerprint
from ironclip.data.images import UNREADABLE, Resizing
from ironclip.data.options import ReaderOptions
from ironclip.data.stored import Columns, StoredDataset
from ironclip.errors import ConfigError, DataError, MissingDependencyError, did_you_mean
from ironclip.randomness import rank_of

# A fingerprint of more images would be no surer, and decoding whole sets would take minutes.
_FINGERPRINTED = 256
_GIVEN_HERE = {"root", "split", "train", "download"}
_FOLDERS = {"ImageFolder", "DatasetFolder", "VisionDataset"}
_OTHERS = "Only classification sets are read: an image and a whole number a sample."


@dataclass(frozen=True, kw_only=True)
class TorchvisionOptions(ReaderOptions):
    """Options of `torchvision:`.

    Attributes:
        root: The folder that torchvision calls root.
        download: Let torchvision fetch what is not there.
    """

    root: str
    download: bool = False


class TorchvisionDataset(StoredDataset):
    """A torchvision set in its own order."""

    def __init__(self, columns: Columns, resizing: Resizing, inner: Any) -> None:
        super().__init__(columns, resizing)
        self._inner = inner

    def _image(self, position: int) -> Image.Image:
        image: Image.Image = self._inner[position][0]
        return image


def open_torchvision(source: str, where: str, options: TorchvisionOptions) -> TorchvisionDataset:
    """Open a torchvision set by the name of its class.

    Keys are `name/split/000123`, by position. The fingerprint is the sha256 over all labels and the pixels of the 256
    images whose keys have the lowest hash.

    Raises:
        ConfigError: No such set, it needs what a source cannot say, or the split is missing or unknown.
        DataError: Its files are not under `root`, or its labels are no whole numbers.
        MissingDependencyError: The set needs a package of its own.
    """
    cls = _find(where)
    inner = _construct(where, cls, options)
    keys = [f"{where.lower()}/{options.split or 'all'}/{position:06d}" for position in range(len(inner))]
    probe = sorted(range(len(keys)), key=lambda position: rank_of("fingerprint", keys[position]))[:_FINGERPRINTED]
    probed = {position: _probe(where, inner, position) for position in probe}
    labels = _labels(where, inner, {position: label for position, (_, label) in probed.items() if label is not None})
    columns = Columns(
        source=source,
        keys=keys,
        labels=labels,
        class_names=_class_names(inner),
        content=fingerprint([where, str(labels), *(pixels for pixels, _ in probed.values())]),
    )
    return TorchvisionDataset(columns, options.resizing(), inner)


def _find(name: str) -> Callable[..., Any]:
    import torchvision.datasets as sets

    if name in _FOLDERS:
        raise ConfigError(f"torchvision:{name} is any folder of images.", "Write folder:PATH instead.")
    known: dict[str, Callable[..., Any]] = {}
    for entry in set(sets.__all__) - _FOLDERS:
        cls = getattr(sets, entry)
        parameters = inspect.signature(cls).parameters
        needed = {name for name, parameter in parameters.items() if parameter.default is parameter.empty}
        if "root" in parameters and needed - {"kwargs"} <= _GIVEN_HERE:
            known[entry] = cls
    if name not in known:
        raise ConfigError(
            f'torchvision has no set "{name}" that can be read here.{did_you_mean(name, known)}',
            "Give the name of a classification set as torchvision.datasets writes it, such as CIFAR10.",
        )
    return known[name]


def _construct(name: str, cls: Callable[..., Any], options: TorchvisionOptions) -> Any:
    parameters = inspect.signature(cls).parameters
    arguments: dict[str, Any] = {"root": options.root}
    if "download" in parameters:
        arguments["download"] = options.download  # always said: some sets download by default
    elif options.download:
        raise ConfigError(f"torchvision cannot download {name}.", f"Put its files under {options.root} by hand.")
    if "split" in parameters or "train" in parameters:
        if options.split is None:
            raise ConfigError(f"torchvision:{name} has several splits.", "Say which one, such as &split=test.")
        if "split" in parameters:
            arguments["split"] = options.split
        elif options.split in ("train", "test"):
            arguments["train"] = options.split == "train"
        else:
            raise ConfigError(f'torchvision:{name} has no split "{options.split}".', "It has: train, test.")
    elif options.split is not None:
        raise ConfigError(f"torchvision:{name} has no splits (got {options.split}).", "Leave split out.")
    try:
        return cls(**arguments)
    except ImportError as error:
        raise MissingDependencyError(error.name or str(error), purpose=f"torchvision:{name}") from error
    except (RuntimeError, OSError, ValueError) as error:
        remedy = f"Put its files under {options.root} as torchvision lays them out, or add &download=true."
        raise DataError(f"torchvision:{name} cannot be opened: {' '.join(str(error).split())}", remedy) from error


def _probe(name: str, inner: Any, position: int) -> tuple[str, int | None]:
    """Return the sha256 of an image's RGB levels ("unreadable" where it is) and its label."""
    try:
        image, target = inner[position]
        if not isinstance(image, Image.Image):
            raise DataError(f"torchvision:{name} holds {type(image).__name__}s, expected images.", _OTHERS)
        return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest(), _whole_number(name, target)
    except DataError:
        raise
    except UNREADABLE:
        return "unreadable", None


def _whole_number(name: str, target: Any) -> int:
    if isinstance(target, Tensor | np.generic):
        target = target.item()
    if type(target) is not int:
        kind = type(target).__name__
        raise DataError(f"torchvision:{name} has labels of type {kind}, expected whole numbers.", _OTHERS)
    return target


def _labels(name: str, inner: Any, probed: dict[int, int]) -> list[int]:
    """Return all labels: from the list that the set keeps, if it agrees with what it hands out, else one by one."""
    for attribute in ("targets", "labels", "_labels", "y"):
        kept: Sequence[Any] = getattr(inner, attribute, ())
        if len(kept) == len(inner) and all(int(kept[position]) == label for position, label in probed.items()):
            return [int(label) for label in kept]
    return [_whole_number(name, inner[position][1]) for position in range(len(inner))]


def _class_names(inner: Any) -> list[str] | None:
    names = getattr(inner, "classes", None) or getattr(inner, "categories", None)
    # ImageNet's classes are tuples of synonyms.
    return [name if isinstance(name, str) else str(name[0]) for name in names] if names else None
