"""From open_clip's CLIP to transformers': configuration, weights, preprocessing, tokenizer.

The way back of `_transformers`. Nothing of transformers is imported: these are files
with known keys, and a model can be exported without the package.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import open_clip
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from ironclip.errors import ConfigError
from ironclip.models._transformers import BLOCKS, KERNELS, TOWERS
from ironclip.models.preprocessing import Preprocessing

_START, _END = "<|startoftext|>", "<|endoftext|>"
# What transformers' CLIP can differ in; of all else only open_clip's own defaults go with it.
_EXPRESSED = {
    "vision_cfg": {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio", "patch_dropout"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"},
}
_KNOWN_AT_TOP = {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg", "custom_text", "init_logit_scale"}


def check_expressible(architecture: Mapping[str, Any], preprocessing: Preprocessing, where: object) -> None:
    """Refuse what transformers' CLIPModel has no setting for.

    Raises:
        ConfigError: Names every such setting.
    """
    unlike = [key for key in architecture if key not in _KNOWN_AT_TOP and architecture[key]]
    for section, tower in (("vision_cfg", open_clip.CLIPVisionCfg), ("text_cfg", open_clip.CLIPTextCfg)):
        defaults = {field.name: field.default for field in dataclasses.fields(tower)}
        given = architecture[section]
        unlike += [
            f"{section}.{key}"
            for key, value in given.items()
            if key not in _EXPRESSED[section] and value != defaults[key]
        ]
    for key in ("layers", "patch_size"):  # a list of layers is a ResNet, a pair of sides no square
        if not isinstance(_sizes(architecture)[0][key], int):
            unlike.append(f"vision_cfg.{key}")
    if preprocessing.resize_mode != "shortest":
        unlike.append(f"resize mode {preprocessing.resize_mode}")
    if unlike:
        raise ConfigError(
            f"transformers' CLIPModel cannot express {', '.join(unlike)} of {where}.",
            "Export it in open_clip's layout: --format open_clip",
        )


def model_config(architecture: Mapping[str, Any], resolution: int) -> dict[str, Any]:
    """Return config.json of an architecture that `check_expressible` lets pass; `resolution` in pixels."""
    vision, text = _sizes(architecture)
    shared = {
        "hidden_act": "quick_gelu" if architecture.get("quick_gelu") else "gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": architecture["embed_dim"],
    }
    start, end = _special_ids(text["vocab_size"])
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": architecture["embed_dim"],
        "torch_dtype": "float32",
        "text_config": shared
        | {
            "model_type": "clip_text_model",
            "hidden_size": text["width"],
            "intermediate_size": int(text["width"] * text["mlp_ratio"]),
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "max_position_embeddings": text["context_length"],
            "vocab_size": text["vocab_size"],
            "bos_token_id": start,
            "eos_token_id": end,
            "pad_token_id": end,
        },
        "vision_config": shared
        | {
            "model_type": "clip_vision_model",
            "hidden_size": vision["width"],
            "intermediate_size": int(vision["width"] * vision["mlp_ratio"]),
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision["head_width"],
            "image_size": resolution,
            "patch_size": vision["patch_size"],
        },
    }


def processor_config(preprocessing: Preprocessing) -> dict[str, Any]:
    """Return preprocessor_config.json."""
    side = preprocessing.resolution
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": {name: number for number, name in KERNELS.items()}[preprocessing.kernel],
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def tokenizer_files(context_length: int) -> dict[str, Any]:
    """Return the files of CLIP's tokenizer by name: objects to be written as JSON, and merges.txt as text."""
    tokenizer: Any = SimpleTokenizer(context_length=context_length)
    words = sorted(tokenizer.encoder, key=tokenizer.encoder.__getitem__)
    # open_clip's own spelling of the two last words differs from that in which transformers looks them up.
    vocabulary = {word: index for index, word in enumerate([*words[:-2], _START, _END])}
    merges = [" ".join(pair) for pair in sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)]
    special = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}
    return {
        "vocab.json": vocabulary,
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
        "special_tokens_map.json": special,
        "tokenizer_config.json": special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": context_length},
    }


def rename_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename open_clip's tensors to transformers'; the inverse of `_transformers.translate_weights`."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("text.")  # where open_clip's text tower is a module of its own
        if ".attn.in_proj_" in name:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                renamed[_rename(name.replace(".attn.in_proj_", f".self_attn.{part}_proj."))] = rows
        elif name in ("visual.proj", "text_projection"):
            renamed[_rename(name)] = tensor.T
        else:
            renamed[_rename(name)] = tensor.reshape(()) if name == "logit_scale" else tensor
    return renamed


def _rename(name: str) -> str:
    for theirs, ours in TOWERS.items():
        if name.startswith(ours):
            name = theirs + name.removeprefix(ours)
            break
    for theirs, ours in BLOCKS.items():
        name = name.replace(ours, theirs)
    return name


def _sizes(architecture: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of both towers, open_clip's defaults written out."""
    vision = dataclasses.asdict(open_clip.CLIPVisionCfg()) | dict(architecture["vision_cfg"])
    text = dataclasses.asdict(open_clip.CLIPTextCfg()) | dict(architecture["text_cfg"])
    return vision, text


def _special_ids(vocabulary: int) -> tuple[int, int]:
    """Return the ids of the start and the end of a text: the last two words of CLIP's vocabulary."""
    return vocabulary - 2, vocabulary - 1
