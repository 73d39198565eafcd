"""Prompts and adapters as files: alone, beside the name and the hash of the model that they were tuned on.

A folder holds `pieces.safetensors` and `pieces.json`. With `base` there it stands on that model; without, the model's
own files lie in the same folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from ironclip.data.fingerprints import file_sha256
from ironclip.errors import WeightsError
from ironclip.files import write_atomically
from ironclip.models._files import read_json
from ironclip.models._weights import read_weights, write_tensors
from ironclip.models.adapters import Adapters, tower_sizes
from ironclip.models.clip import CLIPModel, ModelSpec
from ironclip.models.prompts import FreePrompts
from ironclip.models.visual_prompt import PixelFrame

Piece = Literal["prompts", "adapters"]

SETTINGS = "pieces.json"
TENSORS = "pieces.safetensors"
PREFIXES = ("prompts.", "adapters.")


def save_pieces(
    model: CLIPModel, folder: Path, pieces: Sequence[Piece] = ("prompts", "adapters"), *, base: ModelSpec | None = None
) -> str:
    """Save a model's prompts and adapters, and nothing else of it.

    Coupled prompts are saved as the towers read them, without the maps between them.

    Args:
        model: The model.
        folder: Where to.
        pieces: Which of them; absent ones are passed over.
        base: The model that they stand on; None where its files lie in the same folder.

    Returns:
        The sha256 hex of the file of tensors.
    """
    tensors: dict[str, Tensor] = {}
    words = None
    if model.prompts is not None and "prompts" in pieces:
        plain = model.prompts.plain()
        tensors |= {f"prompts.{name}": parameter for name, parameter in plain.named_parameters()}
        words = plain.words
    if model.adapters is not None and "adapters" in pieces:
        tensors |= {f"adapters.{name}": parameter for name, parameter in model.adapters.named_parameters()}
    settings = {
        "base": None if base is None else {"source": base.origin, "sha256": base.sha256},
        "words": None if words is None else list(words),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(tensors, folder / TENSORS)
    write_atomically(folder / SETTINGS, (json.dumps(settings, indent=1) + "\n").encode())
    return file_sha256(folder / TENSORS)


def has_pieces(folder: Path) -> bool:
    """Say whether a folder holds prompts or adapters."""
    return (folder / SETTINGS).is_file()


def base_of(folder: Path) -> tuple[str, str]:
    """Return source and sha256 of the model that a folder's pieces stand on.

    Raises:
        WeightsError: It names none.
    """
    base = read_json(folder / SETTINGS).get("base")
    if not isinstance(base, dict) or not {"source", "sha256"} <= base.keys():
        raise WeightsError(f"{folder / SETTINGS} names no base model.", "Train anew, or add the base's files.")
    return base["source"], base["sha256"]


def add_saved_pieces(clip: nn.Module, base_sha256: str, folder: Path) -> str:
    """Put a folder's prompts and adapters into an open_clip model.

    Args:
        clip: The model.
        base_sha256: Its hash.
        folder: With the pieces.

    Returns:
        The sha256 hex that stands for both.

    Raises:
        WeightsError: The tensors are not those of prompts or adapters, or do not fit into the towers.
    """
    tensors = read_weights(folder / TENSORS)
    strange = [name for name in tensors if not name.startswith(PREFIXES)]
    if strange or not tensors:
        raise WeightsError(f"{folder / TENSORS} holds no pieces ({', '.join(strange[:3])}).", "Fetch the run anew.")
    for piece, build in (("prompts", _prompts), ("adapters", _adapters)):
        own = {name.removeprefix(f"{piece}."): value for name, value in tensors.items() if name.startswith(piece)}
        if not own:
            continue
        if hasattr(clip, piece):
            raise WeightsError(f"the base model of {folder} has {piece} of its own.", "Merge or drop them first.")
        clip.add_module(piece, build(clip, own, folder))
    both = f"{base_sha256}\n{file_sha256(folder / TENSORS)}"
    return hashlib.sha256(both.encode()).hexdigest()


def _prompts(clip: Any, tensors: Mapping[str, Tensor], folder: Path) -> FreePrompts:
    words = read_json(folder / SETTINGS).get("words")
    (_, image_width), (_, text_width) = tower_sizes(clip)
    text, image = (
        [tensors[f"{tower}.{layer}"] for layer in range(len(tensors)) if f"{tower}.{layer}" in tensors]
        for tower in ("text", "image")
    )
    strips = {name.removeprefix("frame."): strip for name, strip in tensors.items() if name.startswith("frame.")}
    for layer, width in [*((one, text_width) for one in text), *((one, image_width) for one in image)]:
        if layer.ndim != 2 or layer.shape[1] != width:
            raise _misfit(folder, f"prompts {tuple(layer.shape)} for a tower of width {width}")
    frame = PixelFrame(**strips) if strips else None
    return FreePrompts(text, image, None if words is None else (words[0], words[1]), frame)


def _adapters(clip: Any, tensors: Mapping[str, Tensor], folder: Path) -> Adapters:
    inner = next((value for name, value in tensors.items() if name.endswith(".inner")), None)
    adapters = Adapters(*tower_sizes(clip), None if inner is None else len(inner))
    wanted = {name: tuple(value.shape) for name, value in adapters.named_parameters()}
    if wanted != {name: tuple(value.shape) for name, value in tensors.items()}:
        raise _misfit(folder, f"{len(tensors)} tensors of adapters, the towers want {len(wanted)} of other shapes")
    adapters.load_state_dict(dict(tensors))
    return adapters


def _misfit(folder: Path, what: str) -> WeightsError:
    return WeightsError(f"{folder / TENSORS} does not fit its base model: {what}.", "Give the model it was tuned on.")
