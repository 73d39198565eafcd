"""Models on paper: the architecture that a source names, from its configuration alone, and models without weights."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import nn

from ironclip.errors import ConfigError, did_you_mean
from ironclip.models._architecture import build_clip, check_architecture, preprocessing_of, read_open_clip
from ironclip.models._files import read_json
from ironclip.models._transformers import read_transformers
from ironclip.models.clip import CLIPModel, ModelSpec, Tokenizer, tokenizer_for
from ironclip.models.sources import BUNDLED, CONFIG

SMALL = {"width": 64, "layers": 2}
"""Of both towers of a rehearsal's model; two layers, so that there is a first and a last one."""

SIDE = 8
"""So many patches, at most, along an image of a rehearsal."""


def read_architecture(source: str, named: str | None = None) -> dict[str, Any]:
    """Return open_clip's configuration of the model that a source names; reads no weights and downloads nothing.

    Args:
        source: As in a recipe.
        named: The name of open_clip's architecture, where the source does not tell.

    Raises:
        ConfigError: Neither tells; or open_clip has no such architecture.
    """
    if named is not None:
        return _built_in(named)
    kind, _, where = source.partition(":")
    if source == "tiny":
        return _from_folder(BUNDLED / "tiny", source)
    if kind == "open_clip":
        return _built_in(where.partition("/random")[0] if "/random" in where else where.rpartition("/")[0])
    folder = Path(where if kind in ("local-dir", "run") else source)
    for place in (folder, folder / "model"):
        if (place / CONFIG).is_file() or (place / "config.json").is_file():
            return _from_folder(place, source)
    raise ConfigError(
        f'the architecture of "{source}" is not known before it is there.',
        "Name it: --architecture ViT-L-14, or another of open_clip's.",
    )


def paper_model(architecture: Mapping[str, Any], where: str) -> CLIPModel:
    """Build a model whose parameters have shapes and nothing else."""
    with torch.device("meta"):
        clip = build_clip(architecture, where)
    return _as_model(clip, architecture, where)


def small_model(architecture: Mapping[str, Any]) -> tuple[nn.Module, Tokenizer, ModelSpec]:
    """Build towers of the same kind, narrow and short, with random weights, for smaller images: to rehearse on."""
    small = copy.deepcopy(dict(architecture))
    small["embed_dim"] = 32
    vision = small["vision_cfg"]
    side = min(vision["image_size"], SIDE * vision["patch_size"])
    small["vision_cfg"] |= SMALL | {"head_width": 32, "image_size": side}
    small["vision_cfg"].pop("mlp_ratio", None)
    small["text_cfg"] |= SMALL | {"heads": 2}
    clip = build_clip(small, "a rehearsal")
    return clip, _tokenizer(small["text_cfg"].get("context_length", 77)), _spec(clip, small, "a rehearsal")


def random_model(architecture: Mapping[str, Any]) -> CLIPModel:
    """Build the model itself with random weights: to time it."""
    return _as_model(build_clip(architecture, "a model to be timed"), architecture, "a model to be timed")


def _as_model(clip: nn.Module, architecture: Mapping[str, Any], where: str) -> CLIPModel:
    tokenizer = _tokenizer(architecture["text_cfg"].get("context_length", 77))
    return CLIPModel(clip, tokenizer, _spec(clip, architecture, where))


def _spec(clip: nn.Module, architecture: Mapping[str, Any], where: str) -> ModelSpec:
    return ModelSpec(where, dict(architecture), "", preprocessing_of(clip, {}, where))


@functools.cache
def _tokenizer(context_length: int) -> Tokenizer:
    return tokenizer_for({"text_cfg": {"context_length": context_length}})


def _built_in(name: str) -> dict[str, Any]:
    wanted, known = name.replace("/", "-"), open_clip.list_models()
    if wanted not in known:
        raise ConfigError(
            f'open_clip has no architecture "{name}".{did_you_mean(wanted, known)}', "Write, say, ViT-B-32 or ViT-L-14."
        )
    architecture = open_clip.get_model_config(wanted)
    check_architecture(architecture, name)
    return architecture  # type: ignore[no-any-return]  # open_clip is untyped


def _from_folder(folder: Path, source: str) -> dict[str, Any]:
    own = folder / CONFIG
    if own.is_file():
        architecture = read_open_clip(read_json(own), source).architecture
    else:
        architecture = read_transformers(read_json(folder / "config.json"), {}, source).architecture
    check_architecture(architecture, source)
    return architecture
