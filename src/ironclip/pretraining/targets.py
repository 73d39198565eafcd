"""Where each phrase should lie in the space that text and images will share: three candidates of one interface.

    sentence   a sentence encoder's geometry, which knows words but has seen no image
    clip       CLIP's own, known for some thousand class names; ridge regression from the sentence encoder's extends it
    both       the two side by side, in equal parts

All are reduced to the tower's width by their main axes. A phrase has one target, whatever template it stands in: what a
template says ("a blurry photo of") is not what tells classes apart, so the tower is to ignore it, and class weights
then hardly depend on the templates that a user happens to write.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ironclip.data.fingerprints import file_sha256
from ironclip.errors import ConfigError, DataError, ShapeError
from ironclip.files import write_atomically
from ironclip.models._weights import read_weights
from ironclip.pretraining.geometry import fit_ridge, principal_axes
from ironclip.pretraining.phrases import Phrases, alike, plain
from ironclip.randomness import rank_of

_FOLDS = 5
_KINDS = ("sentence", "clip", "both")

Encode = Callable[[Sequence[str]], Tensor]
"""Texts to unit rows `[N, S]`: a sentence encoder's."""


@dataclass(frozen=True, kw_only=True)
class TargetSettings:
    """Which target, and how it is reduced.

    Attributes:
        kind: "sentence", "clip" or "both".
        width: Axes that are kept: the width of the tower's embedding.
        whitening: From 0 (axes keep their deviations) to 1 (all alike); see `Axes.project`.
        class_share: Weight of the class names, together, in the search for the axes; the rest lies on the other
            phrases. Where few names differ (ten digits), a vocabulary alone would drop the axes that part them.
    """

    kind: Literal["sentence", "clip", "both"] = "both"
    width: int = 128
    whitening: float = 0.5
    class_share: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ConfigError(f'targets.kind is "{self.kind}".', f"Give one of {', '.join(_KINDS)}.")
        if self.width < 1:
            raise ConfigError(f"targets.width is {self.width}.", "Give the width of the model's embedding.")
        for name in ("whitening", "class_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"targets.{name} is {getattr(self, name)}.", "Give a share from 0 to 1.")


@dataclass(frozen=True)
class ClipText:
    """Text embeddings of a real CLIP.

    Attributes:
        names: Class names in plain form, each once.
        rows: Their embeddings, unit rows, float32 `[N, D]`.
        sha256: Hash of the file that they came from, hex.
    """

    names: tuple[str, ...]
    rows: Tensor
    sha256: str


@dataclass(frozen=True)
class Targets:
    """Phrases and where they should lie.

    Attributes:
        phrases: The phrases.
        rows: Unit rows in the order of `phrases.all`, float32 `[N, K]`.
        record: How they were made and what came of it: settings, hashes, share of the variance that the axes hold, of
            the ridge regression its penalty and its cosine on names that were held out.
    """

    phrases: Phrases
    rows: Tensor
    record: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or len(self.rows) != len(self.phrases):
            raise ShapeError(
                f"targets {tuple(self.rows.shape)} for {len(self.phrases)} phrases.", "Give one row a phrase."
            )

    def of(self, names: Sequence[str]) -> Tensor:
        """Return the rows of some phrases, `[len(names), K]`.

        Raises:
            DataError: A phrase has no target.
        """
        place = {phrase: row for row, phrase in enumerate(self.phrases.all)}
        absent = [name for name in names if plain(name) not in place]
        if absent:
            raise DataError(f'"{absent[0]}" has no target.', "Name a phrase that was gathered, and not left out.")
        return self.rows[[place[plain(name)] for name in names]]


def read_clip_text(folder: Path, *, without: Collection[str] = ()) -> ClipText:
    """Read text embeddings of a real CLIP: `embeddings.safetensors` and `names.json`, both by set of names.

    A name of several sets gets the mean of its rows, after the sets "imagenet" (mean over many templates) and the
    others ("a NAME") have been laid over each other by the mean difference of the names that both have.

    Args:
        folder: With both files.
        without: Names that must not be learned; dropped where they are one of the readings of a name, which "/", ","
            and brackets part ("baluster / handrail").

    Raises:
        DataError: `names.json` is missing, or does not fit the embeddings, or nothing is left.
        WeightsError: The embeddings are missing or damaged.
    """
    path = folder / "names.json"
    if not path.is_file():
        raise DataError(f"there is no {path}.", "Give the folder with names.json and embeddings.safetensors.")
    names: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
    tensors = read_weights(folder / "embeddings.safetensors")
    if {key: len(part) for key, part in names.items()} != {key: len(rows) for key, rows in tensors.items()}:
        raise DataError(f"{path} does not fit embeddings.safetensors.", "Fetch both files anew.")
    ensembles, singles = dict[str, list[Tensor]](), dict[str, list[Tensor]]()
    banned = {alike(name) for name in without}
    for key, part in sorted(names.items()):
        found = ensembles if key == "imagenet" else singles
        for name, row in zip(map(plain, part), F.normalize(tensors[key].float(), dim=-1), strict=True):
            if not banned & _readings(name):
                found.setdefault(name, []).append(row)
    if not ensembles and not singles:
        raise DataError(f"no name of {path} is left.", "Leave out fewer names.")
    shared = [name for name in ensembles if name in singles]
    means = {name: torch.stack(rows).mean(dim=0) for name, rows in singles.items()}
    ensemble_means = {name: torch.stack(rows).mean(dim=0) for name, rows in ensembles.items()}
    offset = torch.stack([means[name] - ensemble_means[name] for name in shared]).mean(dim=0) if shared else 0
    for name, row in ensemble_means.items():
        means[name] = (means[name] + row + offset) / 2 if name in means else row + offset
    rows = F.normalize(torch.stack(list(means.values())), dim=-1)
    return ClipText(tuple(means), rows, file_sha256(folder / "embeddings.safetensors"))


def make_targets(
    phrases: Phrases, settings: TargetSettings, encode: Encode, clip_text: ClipText | None = None
) -> Targets:
    """Lay the targets of all phrases.

    Args:
        phrases: What is to be taught.
        settings: Which target.
        encode: The sentence encoder; called with each kind of phrases, and with the names of `clip_text`.
        clip_text: Needed for the kinds "clip" and "both".

    Raises:
        ConfigError: A kind that needs `clip_text` without one.
        ValueRangeError: The phrases vary along fewer axes than the width.
    """
    parts = (phrases.class_names, phrases.words, phrases.sentences)
    sentence = torch.cat([encode(part) for part in parts if part])
    record: dict[str, Any] = {**asdict(settings), "phrases": phrases.sha256}
    blocks = [] if settings.kind == "clip" else [sentence]
    if settings.kind != "sentence":
        if clip_text is None:
            raise ConfigError(
                f'targets of kind "{settings.kind}" need text embeddings of a CLIP.', "Give their folder."
            )
        rows, fit = _extend(clip_text, encode(clip_text.names), phrases, sentence)
        blocks.append(rows)
        record |= {"clip_text": clip_text.sha256, **fit}
    weights = _weights(phrases, settings.class_share)
    # Unit rows around the mean give each block the same variance, and each phrase the same weight in both.
    joined = torch.cat([F.normalize(block - weights.float() @ block, dim=-1) for block in blocks], dim=1)
    axes = principal_axes(joined, settings.width, weights)
    return Targets(phrases, axes.project(joined, settings.whitening), record | {"variance_kept": axes.share})


def save_targets(targets: Targets, path: Path) -> Path:
    """Write targets as safetensors, the record in its metadata, and beside it the phrases in order of rows as JSON."""
    phrases = asdict(targets.phrases)
    write_atomically(path.with_suffix(".names.json"), json.dumps(phrases, ensure_ascii=False).encode())
    return write_atomically(path, save({"targets": targets.rows}, metadata={"record": json.dumps(targets.record)}))


def load_targets(path: Path) -> Targets:
    """Read what `save_targets` wrote.

    Raises:
        DataError: A file is missing or damaged.
    """
    names = path.with_suffix(".names.json")
    try:
        content = json.loads(names.read_text(encoding="utf-8"))
        phrases = Phrases(**{kind: tuple(part) for kind, part in content.items()})
        with safe_open(path, framework="pt") as file:
            return Targets(phrases, file.get_tensor("targets"), json.loads(file.metadata()["record"]))
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} or {names.name} cannot be read: {error}.", "Make the targets anew.") from None


def _weights(phrases: Phrases, class_share: float) -> Tensor:
    """Return the weights of phrases in the search for axes: the classes' share, the rest evenly on the others."""
    classes, others = len(phrases.class_names), len(phrases) - len(phrases.class_names)
    if not others:
        return torch.full((classes,), 1 / classes)
    shares = [class_share / classes] * classes + [(1 - class_share) / others] * others
    return torch.tensor(shares, dtype=torch.float64)


def _extend(
    clip_text: ClipText, clip_sentence: Tensor, phrases: Phrases, sentence: Tensor
) -> tuple[Tensor, dict[str, Any]]:
    """Return CLIP's embeddings of all phrases: its own where it has them, else as the sentence encoder foretells."""
    folds = [rank_of("fold", name) % _FOLDS for name in clip_text.names]
    ridge = fit_ridge(clip_sentence, clip_text.rows, folds)
    rows = F.normalize(ridge(sentence), dim=-1)
    known = {alike(name): row for row, name in enumerate(clip_text.names)}
    own = {row: known[name] for row, name in enumerate(map(alike, phrases.all)) if name in known}
    rows[list(own)] = clip_text.rows[list(own.values())]
    return rows, {"ridge_penalty": ridge.penalty, "ridge_cosine": ridge.cosine, "own_clip_rows": len(own)}


def _readings(name: str) -> set[str]:
    """Return a name and its alternatives: "baluster / handrail" is either, "mouse (computer)" a mouse too."""
    for mark in "/(),":
        name = name.replace(mark, "\n")
    return {alike(part) for part in name.split("\n")} | {alike(name.replace("\n", " "))}
