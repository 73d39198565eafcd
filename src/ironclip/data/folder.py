"""`folder:` images in a folder: one folder a class, or all in one folder without labels.

The layout of torchvision's ImageFolder: labels follow the sorted names of the class folders, images may lie at any
depth below them. With `split=NAME` the folder NAME inside is read. A `classes.txt` in the folder replaces the folder
names as class names.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ironclip.data.classes import read_class_names, read_templates
from ironclip.data.fingerprints import files_fingerprint
from ironclip.data.images import FORMATS, Resizing, open_image
from ironclip.data.options import ReaderOptions
from ironclip.data.problems import Problems, missing_folder
from ironclip.data.stored import Columns, StoredDataset
from ironclip.errors import DataError

_SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev"}


@dataclass(frozen=True, kw_only=True)
class FolderOptions(ReaderOptions):
    """Options of `folder:`."""


class FolderDataset(StoredDataset):
    """Image files, in order of their path."""

    def __init__(self, columns: Columns, resizing: Resizing, files: Sequence[Path]) -> None:
        super().__init__(columns, resizing)
        self._files = files

    def _image(self, position: int) -> Image.Image:
        return open_image(self._files[position].read_bytes())


def open_folder(source: str, where: str, options: FolderOptions) -> FolderDataset:
    """Open a folder of images.

    Keys hold the suffix too, since `a.png` may lie beside `a.jpg`. The fingerprint is the sha256 over the names and
    contents of the images, above 1 GiB in all over names and sizes.

    Raises:
        DataError: The folder is missing, holds no image, holds images beside class folders, or class folders that
            look like splits.
    """
    root = Path(where).expanduser()
    folder = root / options.split if options.split else root
    if not folder.is_dir():
        raise missing_folder(folder, expected="one folder of images a class, or images")
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    by_class = {name: _images_below(folder / name) for name in classes}
    loose = _images_in(folder, os.listdir(folder))
    has_classes = any(by_class.values())
    if has_classes and loose:
        raise DataError(
            f"{folder} holds {len(loose)} images beside class folders ({', '.join(classes[:3])}, …).",
            "Move them into a folder of their class, or the class folders away.",
        )
    if has_classes and not options.split and set(by_class) <= _SPLITS:
        raise DataError(
            f"the folders of {folder} look like splits, not classes: {', '.join(by_class)}.",
            f"Say which one: ?split={min(by_class)}.",
        )
    problems = Problems()
    for name in classes if has_classes else ():
        if not by_class[name]:
            problems.say(f"the class folder {name} holds no image.")
    files = [path for name in by_class for path in by_class[name]] if has_classes else loose
    names = [path.relative_to(folder).as_posix() for path in files]
    prefix = "/".join(filter(None, (root.resolve().name, options.split)))
    columns = Columns(
        source=source,
        keys=[f"{prefix}/{name}" for name in names],
        labels=[label for label, name in enumerate(by_class) for _ in by_class[name]] if has_classes else None,
        class_names=(read_class_names(folder) or list(by_class)) if has_classes else None,
        templates=read_templates(folder),
        content=files_fingerprint(list(zip(names, files, strict=True))),
        problems=problems.lines(),
    )
    return FolderDataset(columns, options.resizing(), files)


def _images_in(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the images among the names, sorted; links that lead nowhere too, so that they are named as unreadable."""
    shown = [name for name in names if not name.startswith(".") and not (folder / name).is_dir()]
    return [folder / name for name in sorted(shown) if name.rpartition(".")[2].lower() in FORMATS]


def _images_below(folder: Path) -> list[Path]:
    """Return all images at any depth, sorted by path; hidden folders (thumbnails, checkpoints) are passed over."""
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += _images_in(Path(place), names)
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())
