"""Sources: one string says where samples come from, `kind:where[?option=value&option=value]`.

    wds:DATA/cifar10?split=test            tar shards
    torchvision:CIFAR100?root=DATA&split=test
    folder:DATA/pets?split=test&size=224   one folder a class, or images without labels
    hf:DATA/food101?split=validation       a folder that the package datasets saved
    bundled:shapes?split=test              what comes with IronCLIP: digits, shapes

A new kind is one file with a reader, and its line in `_READERS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ironclip.data.bundled_sets import BundledOptions, open_bundled
from ironclip.data.folder import FolderOptions, open_folder
from ironclip.data.hf import HfOptions, open_hf
from ironclip.data.options import ReaderOptions
from ironclip.data.stored import StoredDataset
from ironclip.data.torchvision_sets import TorchvisionOptions, open_torchvision
from ironclip.data.wds import WdsOptions, open_wds
from ironclip.errors import ConfigError, DataError, did_you_mean
from ironclip.registry import build


@dataclass(frozen=True)
class _Reader:
    options: type[ReaderOptions]
    open: Callable[[str, str, Any], StoredDataset]


_READERS = {
    "bundled": _Reader(BundledOptions, open_bundled),
    "folder": _Reader(FolderOptions, open_folder),
    "hf": _Reader(HfOptions, open_hf),
    "torchvision": _Reader(TorchvisionOptions, open_torchvision),
    "wds": _Reader(WdsOptions, open_wds),
}

# The options start at a question mark that a name and "=" follow: a pattern of shards may hold "?" too.
_SOURCE = re.compile(r"(?P<kind>[a-z]\w*):(?P<where>.+?)(?:\?(?P<options>\w+=.*))?")


def open_dataset(source: str, *, strict: bool = False) -> StoredDataset:
    """Open a data set.

    All kinds take the options `split`, `resize=N` (squeeze to N x N) and `size=N` (shorter side to N, then the centre
    square); both resize 8-bit images, bicubic and antialiased.

    Args:
        source: `kind:where[?option=value&…]`; values hold no "&".
        strict: Refuse a data set of which anything is lost, instead of recording it in `problems`.

    Returns:
        A `Dataset`; what could not be read while opening is in its `problems`.

    Raises:
        ConfigError: The kind or an option is unknown (the nearest known one is shown) or does not fit.
        DataError: The data are missing, or `strict` and not whole.
        MissingDependencyError: The kind needs a package that is not installed.
    """
    parts = _SOURCE.fullmatch(source)
    if parts is None:
        raise ConfigError(
            f'"{source}" is no source, expected kind:where[?option=value&…].',
            f"Write for example wds:FOLDER?split=test. Kinds: {', '.join(_READERS)}.",
        )
    kind = parts["kind"]
    if kind not in _READERS:
        raise ConfigError(
            f'unknown kind of source "{kind}" in "{source}".{did_you_mean(kind, _READERS)}',
            f"Kinds: {', '.join(_READERS)}.",
        )
    reader = _READERS[kind]
    options = build(reader.options, _parse_options(source, parts["options"]), where=kind)
    dataset = reader.open(source, parts["where"], options)
    if strict and dataset.problems:
        raise DataError(
            f"{source} is not whole: {' '.join(dataset.problems)}", "Mend the data, or run without --strict."
        )
    return dataset


def _parse_options(source: str, text: str | None) -> dict[str, str]:
    options: dict[str, str] = {}
    for pair in text.split("&") if text else ():
        name, _, value = pair.partition("=")
        if not name or not value:
            raise ConfigError(
                f'"{pair}" in "{source}" is no option, expected name=value.', "Write ?name=value&name=value."
            )
        if name in options:
            raise ConfigError(f'the option "{name}" stands twice in "{source}".', "Give it once.")
        options[name] = value
    return options
