"""`hf:FOLDER` a data set of the package `datasets`, as its `save_to_disk` writes it.

The image column is the one of type Image (or `image=NAME`), the label column the one of type ClassLabel (or
`label=NAME`), the captions a column called `captions` or `caption` (or `captions=NAME`). Only files on disk are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ironclip.data.fingerprints import files_fingerprint
from ironclip.data.images import Resizing, open_image
from ironclip.data.options import ReaderOptions
from ironclip.data.problems import missing_folder
from ironclip.data.stored import Columns, StoredDataset
from ironclip.errors import ConfigError, DataError, MissingDependencyError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class HfOptions(ReaderOptions):
    """Options of `hf:`.

    Attributes:
        image: Name of the column of images.
        label: Name of the column of labels.
        captions: Name of the column of captions, a text or a list of texts a row.
    """

    image: str | None = None
    label: str | None = None
    captions: str | None = None


class HfDataset(StoredDataset):
    """The rows of a table in their order."""

    def __init__(self, columns: Columns, resizing: Resizing, encoded: Any) -> None:
        super().__init__(columns, resizing)
        self._encoded = encoded

    def _image(self, position: int) -> Image.Image:
        cell = self._encoded[position]
        if cell is None or cell["bytes"] is None:
            raise ValueError("the row holds no image")
        return open_image(cell["bytes"])


def open_hf(source: str, where: str, options: HfOptions) -> HfDataset:
    """Open a folder that `datasets` saved.

    Keys are `folder/split/000123`, by row. Rows labelled -1 or nothing throughout make a set without labels. The
    fingerprint is the sha256 over the names and contents of its arrow files, above 1 GiB in all over names and sizes.

    Raises:
        DataError: The folder is missing or of another kind, or holds no such split.
        ConfigError: No such column, or the images cannot be told from the columns.
        MissingDependencyError: The package `datasets` is not installed.
    """
    try:
        from datasets import ClassLabel
        from datasets import Image as ImageColumn
    except ImportError as error:
        raise MissingDependencyError("datasets", "hf", purpose="hf:") from error
    folder = Path(where).expanduser()
    splits = _load(folder)
    split = _choose_split(folder, options.split, splits)
    table = splits[split].with_format(None)
    kinds = table.features
    image = _choose(folder, "image", options.image, kinds, _of_kind(kinds, ImageColumn))
    if image is None:
        raise ConfigError(
            f"{folder} has no column of images.", f"Say which one it is: ?image=NAME, of {', '.join(kinds)}."
        )
    plain = [name for name in ("label", "labels") if name in kinds]
    label = _choose(folder, "label", options.label, kinds, _of_kind(kinds, ClassLabel) or plain)
    named = [name for name in ("captions", "caption") if name in kinds]
    captions = _choose(folder, "captions", options.captions, kinds, named[:1])
    labels = _labels(folder, label, table[label]) if label is not None else None
    files = [Path(file["filename"]) for file in table.cache_files]
    columns = Columns(
        source=source,
        keys=[f"{folder.resolve().name}/{split}/{row:06d}" for row in range(len(table))],
        labels=labels,
        captions=[_texts(folder, captions, cell) for cell in table[captions]] if captions is not None else None,
        class_names=getattr(kinds[label], "names", None) if labels is not None else None,
        content=files_fingerprint([(file.name, file) for file in files]),
    )
    encoded = table.select_columns([image]).cast_column(image, ImageColumn(decode=False))[image]
    return HfDataset(columns, options.resizing(), encoded)


def _load(folder: Path) -> dict[str, Any]:
    """Return the tables of a saved data set by split; a table saved alone goes by its own split, or "all"."""
    from datasets import DatasetDict, load_from_disk

    if not folder.is_dir():
        raise missing_folder(folder, expected="a data set saved by save_to_disk of the package datasets")
    try:
        saved = load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{folder} cannot be opened: {reason}",
            "Give a folder that save_to_disk of the package datasets wrote; for a folder of images write folder:PATH.",
        ) from error
    return dict(saved) if isinstance(saved, DatasetDict) else {str(saved.split or "all"): saved}


def _choose_split(folder: Path, given: str | None, splits: Iterable[str]) -> str:
    names = list(splits)
    if given is None and len(names) > 1:
        raise ConfigError(f"{folder} has several splits: {', '.join(names)}.", f"Say which one: ?split={names[0]}.")
    if given is not None and given not in names:
        raise DataError(f'no split "{given}" in {folder}.{did_you_mean(given, names)}', f"It has: {', '.join(names)}.")
    return given or names[0]


def _of_kind(kinds: Mapping[str, Any], kind: type) -> list[str]:
    return [name for name in kinds if isinstance(kinds[name], kind)]


def _choose(
    folder: Path, option: str, given: str | None, kinds: Mapping[str, Any], candidates: Sequence[str]
) -> str | None:
    """Return the column that was named, or else the only candidate, or None."""
    if given is not None:
        if given not in kinds:
            raise ConfigError(
                f'no column "{given}" in {folder}.{did_you_mean(given, kinds)}', f"It has: {', '.join(kinds)}."
            )
        return given
    if len(candidates) > 1:
        raise ConfigError(
            f"{folder} has several columns that could be the {option}: {', '.join(candidates)}.",
            f"Say which one: ?{option}={candidates[0]}.",
        )
    return candidates[0] if candidates else None


def _labels(folder: Path, column: str, cells: Iterable[Any]) -> list[int] | None:
    labels = [-1 if cell is None else cell for cell in cells]
    wrong = next((label for label in labels if type(label) is not int), None)
    if wrong is not None:
        raise DataError(
            f"the column {column} of {folder} holds {wrong!r}, expected whole numbers.",
            "Say which column has the labels: ?label=NAME.",
        )
    return None if all(label == -1 for label in labels) else labels


def _texts(folder: Path, column: str, cell: Any) -> tuple[str, ...]:
    texts = [cell] if isinstance(cell, str) else [] if cell is None else cell
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(
            f"the column {column} of {folder} holds {cell!r}, expected texts.",
            "Say which column has the captions: ?captions=NAME.",
        )
    return tuple(texts)
