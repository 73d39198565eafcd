"""`wds:` tar shards of samples, plain or gzipped: `SPLIT-0000.tar`, `SPLIT-0001.tar.gz`, ...

Read with the standard library's tarfile rather than the webdataset package, because we need random access by position
and every loss named, and that package streams and passes over what it cannot read.

A sample is the members with one stem: an image (any suffix of `images.FORMATS`), `.cls` (label, decimal), `.json`
(`captions`, `caption` or `label`), `.txt` (captions, one a line). Of a gzipped shard the encoded images are held in
memory, of a plain one their places in the file. Beside the shards, `classes.txt` and `templates.json` are read.
"""

from __future__ import annotations

import glob
import gzip
import io
import json
import re
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

from PIL import Image

from ironclip.data.classes import read_class_names, read_templates
from ironclip.data.fingerprints import FULL_HASH_BYTES, file_sha256, fingerprint
from ironclip.data.images import FORMATS, Resizing, open_image
from ironclip.data.options import ReaderOptions
from ironclip.data.problems import Problems, missing_folder
from ironclip.data.stored import Columns, StoredDataset
from ironclip.errors import ConfigError, DataError, did_you_mean

_SHARD = re.compile(r"(?P<stem>.+)\.(tar|tar\.gz|tgz)")
_NUMBERED = re.compile(r"(?:(?P<split>.+)-)?(?P<number>\d+)")
_MEMBER = re.compile(r"(?P<stem>(?:.*/)?[^/.]+)\.(?P<suffix>[^/]+)")
_CHUNK = 2**20

# A gzipped shard of images hardly grows; one of zeros grows a thousandfold.
_GROWTH = 50
_SMALL = 2**26


@dataclass(frozen=True, kw_only=True)
class WdsOptions(ReaderOptions):
    """Options of `wds:`."""


@dataclass(frozen=True)
class Shard:
    """One shard as it was read.

    Attributes:
        name: File name.
        sha256: Of the file; None for plain shards above 1 GiB in all, whose index alone is hashed.
    """

    name: str
    sha256: str | None


@dataclass(frozen=True, slots=True)
class _Place:
    """Bytes inside a plain shard; the file is opened at each access, so threads and processes may share it."""

    shard: Path
    offset: int
    size: int

    def read(self) -> bytes:
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(slots=True)
class _Members:
    """The members of one sample by suffix, while they are gathered."""

    images: dict[str, bytes | _Place] = field(default_factory=dict)
    notes: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Row:
    """One sample, its image not decoded."""

    key: str
    image: bytes | _Place
    label: int | None
    captions: tuple[str, ...]


class WdsDataset(StoredDataset):
    """The samples of one split, shards in order of name and samples as they stand in them.

    Attributes:
        shards: The shards that were read, with their hashes.
    """

    def __init__(
        self, columns: Columns, resizing: Resizing, images: list[bytes | _Place], shards: tuple[Shard, ...]
    ) -> None:
        super().__init__(columns, resizing)
        self.shards = shards
        self._encoded = images

    def _image(self, position: int) -> Image.Image:
        encoded = self._encoded[position]
        return open_image(encoded if isinstance(encoded, bytes) else encoded.read())


def open_wds(source: str, where: str, options: WdsOptions) -> WdsDataset:
    """Open a folder of shards, or the shards of a glob pattern, which must be of one split.

    The fingerprint is the sha256 over the sha256 of the shards; of plain shards above 1 GiB in all over names,
    sizes and places of their members instead, and over labels and captions.

    Raises:
        DataError: The folder, the split or the shards are missing, two shards share a key, or no sample is readable.
        ConfigError: A pattern comes with `split`, a folder of several splits without.
    """
    paths, split = _find_shards(where, options.split)
    folder = paths[0].parent
    plain_bytes = sum(path.stat().st_size for path in paths if not _is_gzipped(path))
    problems = Problems()
    for number in _gaps(paths) if folder == Path(where).expanduser() else ():
        problems.say(f"shard {number} of {split} is missing between the others.")
    samples: dict[str, _Members] = {}
    shards, contents = [], []
    for path in paths:
        found, index = _read_shard(path, problems)
        shared = samples.keys() & found.keys()
        if shared:
            raise DataError(
                f"{path} repeats {len(shared)} keys of earlier shards, such as {min(shared)}.",
                "Pack the shards so that keys run on through a split.",
            )
        samples.update(found)
        whole = _is_gzipped(path) or plain_bytes <= FULL_HASH_BYTES
        shards.append(Shard(path.name, file_sha256(path) if whole else None))
        contents.append(shards[-1].sha256 or index)
    rows = _to_rows(samples, f"{folder.resolve().name}/{split}", problems)
    labels = [row.label for row in rows if row.label is not None]
    columns = Columns(
        source=source,
        keys=[row.key for row in rows],
        labels=labels or None,
        captions=[row.captions for row in rows] if any(row.captions for row in rows) else None,
        class_names=read_class_names(folder) if labels else None,
        templates=read_templates(folder),
        content=fingerprint(contents),
        problems=problems.lines(),
    )
    return WdsDataset(columns, options.resizing(), [row.image for row in rows], tuple(shards))


def _to_rows(samples: Mapping[str, _Members], prefix: str, problems: Problems) -> list[_Row]:
    """Return the samples that have an image, and a label where any sample has one; record the others."""
    rows = []
    for stem, members in samples.items():
        key = f"{prefix}/{stem}"
        if not members.images:
            problems.add("no image; left out", key)
            continue
        if len(members.images) > 1:
            problems.add(f"several images ({', '.join(sorted(members.images))}), of which the first is read", key)
        label, captions = _annotation(key, members.notes, problems)
        rows.append(_Row(key, members.images[min(members.images)], label, captions))
    if all(row.label is None for row in rows):
        return rows
    for row in rows:
        if row.label is None:
            problems.add("no label; left out", row.key)
    return [row for row in rows if row.label is not None]


def _find_shards(where: str, split: str | None) -> tuple[list[Path], str]:
    """Return the shards in order of name, and the name of their split."""
    folder = Path(where).expanduser()
    is_pattern = not folder.is_dir() and (folder.is_file() or any(sign in where for sign in "*?["))
    if not is_pattern and not folder.is_dir():
        raise missing_folder(folder, expected="shards SPLIT-0000.tar or SPLIT-0000.tar.gz")
    by_split: dict[str, list[Path]] = {}
    for path in sorted(_list_files(folder)):
        shard = _SHARD.fullmatch(path.name)
        if shard and path.is_file():
            by_split.setdefault(_split_of(shard["stem"]), []).append(path)
    if not by_split:
        raise DataError(
            f"{where} {'matches' if is_pattern else 'holds'} no tar shards.",
            "Shards are called SPLIT-0000.tar or SPLIT-0000.tar.gz; see that the path is right.",
        )
    names = ", ".join(by_split)
    if is_pattern and split is not None:
        raise ConfigError(f"split={split} with a pattern of shards ({where}).", "Give the folder, or no split.")
    if split is None and len(by_split) > 1:
        raise ConfigError(f"{where} has several splits: {names}.", f"Say which one: ?split={min(by_split)}.")
    split = min(by_split) if split is None else split
    if split not in by_split:
        raise DataError(f'no split "{split}" in {where}.{did_you_mean(split, by_split)}', f"It has: {names}.")
    return by_split[split], split


def _list_files(place: Path) -> list[Path]:
    if place.is_dir():
        return list(place.iterdir())
    return [place] if place.is_file() else [Path(match) for match in glob.glob(str(place))]


def _split_of(stem: str) -> str:
    """Read the split off a shard's stem: exactly what stands before the number, so "train" is never "train_b"."""
    numbered = _NUMBERED.fullmatch(stem)
    return (numbered["split"] or "all") if numbered else stem


def _gaps(paths: Sequence[Path]) -> list[int]:
    """Return the numbers that are missing between the first and the last shard."""
    stems = [shard["stem"] for path in paths if (shard := _SHARD.fullmatch(path.name))]
    numbers = {int(numbered["number"]) for stem in stems if (numbered := _NUMBERED.fullmatch(stem))}
    return sorted(set(range(min(numbers), max(numbers))) - numbers) if numbers else []


def _is_gzipped(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _read_shard(path: Path, problems: Problems) -> tuple[dict[str, _Members], str]:
    """Return the samples of a shard by stem, and the sha256 of its index and annotations."""
    found: dict[str, _Members] = {}
    lines = [path.name]
    gzipped = _is_gzipped(path)
    damage = ""
    with path.open("rb") as file:
        stream: BinaryIO = file
        if gzipped:
            tar, damage = _inflate(file)
            stream = io.BytesIO(tar)
        members, cut = _list_members(stream)
        for member in members:
            parts = _MEMBER.fullmatch(member.name.removeprefix("./"))
            if member.issym() or member.islnk():
                problems.add("a link instead of a file; left out", member.name)
            elif member.name.startswith("/") or ".." in member.name.split("/"):
                problems.add("a path that leads out of the shard; left out", member.name)
                continue
            if not member.isreg() or parts is None:
                continue
            sample = found.setdefault(parts["stem"], _Members())
            suffix = parts["suffix"].lower()
            if suffix in sample.images or suffix in sample.notes:
                problems.add(f"two members .{suffix} in {path.name}; the first is read", parts["stem"])
                continue
            lines.append(f"{member.name} {member.offset_data} {member.size}")
            if suffix in FORMATS:
                place = _Place(path, member.offset_data, member.size)
                sample.images[suffix] = _bytes_of(stream, member) if gzipped else place
            elif suffix in ("cls", "json", "txt"):
                sample.notes[suffix] = _bytes_of(stream, member)
                lines.append(sample.notes[suffix].hex())
    if damage or cut:
        whole = sum(bool(sample.images) for sample in found.values())
        problems.say(f"shard {path.name} is damaged ({damage or cut}): {whole} samples before the damage are kept.")
    return found, fingerprint(lines)


def _bytes_of(stream: BinaryIO, member: tarfile.TarInfo) -> bytes:
    stream.seek(member.offset_data)
    return stream.read(member.size)


def _inflate(file: BinaryIO) -> tuple[bytes, str]:
    """Return what a gzipped file holds as far as it can be read, and what is wrong with it."""
    chunks: list[bytes] = []
    most = _SMALL + _GROWTH * file.seek(0, io.SEEK_END)
    file.seek(0)
    with gzip.GzipFile(fileobj=file) as packed:
        try:
            while chunk := packed.read1(_CHUNK):
                chunks.append(chunk)
                if packed.tell() > most:
                    return b"".join(chunks), f"gzip: it grows to more than {_GROWTH} times its size"
        except (EOFError, OSError, zlib.error) as error:
            return b"".join(chunks), f"gzip: {error}"
    return b"".join(chunks), ""


class _Header(tarfile.TarInfo):
    """A header whose size is one: of a negative one, Python's own reader goes back and never ends."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0:
            raise tarfile.ReadError(f"a member of {header.size} bytes")
        return header


def _list_members(stream: BinaryIO) -> tuple[list[tarfile.TarInfo], str]:
    """Return the members that are there whole, and what is wrong with the tar."""
    total = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    members: list[tarfile.TarInfo] = []
    end, damage = 0, ""
    try:
        with tarfile.TarFile(fileobj=stream, mode="r", tarinfo=_Header) as tar:
            for member in tar:
                if tar.offset <= end:
                    raise tarfile.ReadError("its headers lead in a circle")
                members.append(member)
                end = tar.offset
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
        damage = f"tar: {error}"
    whole = [member for member in members if member.offset_data + member.size <= total]
    if not damage:
        # tarfile takes a damaged header for the end of the archive; the true end is a block of zeros.
        stream.seek(end)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            damage = f"tar: it breaks off at byte {end}"
    return whole, damage


def _annotation(key: str, notes: Mapping[str, bytes], problems: Problems) -> tuple[int | None, tuple[str, ...]]:
    """Read label and captions of a sample; what cannot be read is recorded."""
    label: int | None = None
    captions: tuple[str, ...] = ()
    try:
        if "txt" in notes:
            captions = tuple(line.strip() for line in notes["txt"].decode().splitlines() if line.strip())
        if "json" in notes:
            label, captions = _from_json(json.loads(notes["json"].decode()), captions)
        if "cls" in notes:
            label = _from_cls(notes["cls"])
    except (ValueError, RecursionError) as error:  # the first for bytes that are not UTF-8 and text that is no JSON too
        problems.add("an annotation that cannot be read", f"{key}: {error}")
    return label, captions


def _from_cls(content: bytes) -> int:
    if not re.fullmatch(rb"[0-9]{1,9}", content.strip()):
        raise ValueError(f".cls holds {content[:20]!r}, expected a decimal number")
    return int(content)


def _from_json(content: Any, captions: tuple[str, ...]) -> tuple[int | None, tuple[str, ...]]:
    if not isinstance(content, dict):
        raise ValueError(".json holds no object")
    label = content.get("label")
    if label is not None and (type(label) is not int or label < 0):
        raise ValueError(f'"label" in .json is {label!r}, expected a whole number from 0')
    texts = content.get("captions", content.get("caption", captions))
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ValueError("the captions in .json are not texts")
    return label, tuple(texts)
