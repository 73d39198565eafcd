"""transformers' CLIP folders (config.json, model.safetensors) in open_clip's terms: the same numbers, other names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ironclip.errors import ConfigError
from ironclip.models._architecture import Blueprint
from ironclip.models.preprocessing import CLIP_MEAN, CLIP_STD

# transformers leaves out of config.json what equals its defaults.
_SHARED = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_VISION = _SHARED | {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
}
_TEXT = _SHARED | {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    "eos_token_id": 49407,
}
KERNELS = {2: "bilinear", 3: "bicubic"}  # PIL's numbers
# In the text tower the end-of-text token is found as the largest id, which it is in CLIP's vocabulary; 2 is how old
# files spell that.
_END_OF_TEXT = (2, 49407)


def read_transformers(config: Mapping[str, Any], processor: Mapping[str, Any], where: object) -> Blueprint:
    """Translate config.json and preprocessor_config.json (empty: CLIP's own values hold).

    Raises:
        ConfigError: Not a CLIP model, or one that open_clip's towers cannot express.
    """
    kind = config.get("model_type")
    if kind != "clip":
        siglip = " (SigLIP: its logits have a bias)" if str(kind).startswith("siglip") else ""
        raise ConfigError(
            f'{where} has model_type "{kind}"{siglip}.',
            "IronCLIP reads open_clip's CLIP models and transformers' CLIP.",
        )
    vision = _section(config, "vision_config", _VISION)
    text = _section(config, "text_config", _TEXT)
    activation = vision["hidden_act"]
    unlike = {
        "hidden_act": activation not in ("gelu", "quick_gelu") or text["hidden_act"] != activation,
        "layer_norm_eps": vision["layer_norm_eps"] != 1e-5 or text["layer_norm_eps"] != 1e-5,
        "vocab_size": text["vocab_size"] != 49408,
        "eos_token_id": text["eos_token_id"] not in _END_OF_TEXT,
    }
    if any(unlike.values()):
        wrong = [f"{key} {vision.get(key, '-')}/{text[key]}" for key, is_wrong in unlike.items() if is_wrong]
        raise ConfigError(
            f"config.json of {where} has {', '.join(wrong)} (vision/text), which open_clip's CLIP does not have.",
            "Load a CLIP with one activation in both towers and CLIP's own vocabulary.",
        )
    architecture = {
        "embed_dim": config.get("projection_dim", 512),
        "quick_gelu": activation == "quick_gelu",
        "vision_cfg": {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "width": vision["hidden_size"],
            "layers": vision["num_hidden_layers"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
        },
        "text_cfg": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "width": text["hidden_size"],
            "heads": text["num_attention_heads"],
            "layers": text["num_hidden_layers"],
            "mlp_ratio": text["intermediate_size"] / text["hidden_size"],
        },
    }
    return Blueprint(architecture, _preprocess(processor, vision["image_size"], where), ())


def _section(config: Mapping[str, Any], key: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    # Files before 2023 hold some settings under the second name, which wins.
    return {**defaults, **(config.get(key) or {}), **(config.get(f"{key}_dict") or {})}


def _preprocess(processor: Mapping[str, Any], side: int, where: object) -> dict[str, Any]:
    size, crop = processor.get("size", side), processor.get("crop_size", side)
    shortest = size.get("shortest_edge") if isinstance(size, dict) else size
    cropped = crop.get("height") if isinstance(crop, dict) else crop
    kernel = KERNELS.get(processor.get("resample", 3))
    if shortest != side or cropped != side or kernel is None:
        raise ConfigError(
            f"{where} is preprocessed with size {size}, crop_size {crop}, resample {processor.get('resample')}.",
            f"IronCLIP resizes the shorter side to the tower's {side} pixels (resample 2 or 3) and crops the centre.",
        )
    mean, std = processor.get("image_mean", CLIP_MEAN), processor.get("image_std", CLIP_STD)
    return {"mean": mean, "std": std, "interpolation": kernel, "resize_mode": "shortest"}


TOWERS = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",  # spelt so by transformers
    "vision_model.post_layernorm.": "visual.ln_post.",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    "text_model.embeddings.token_embedding.": "token_embedding.",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.": "ln_final.",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "visual_projection.weight": "visual.proj",
    "text_projection.weight": "text_projection",
}
BLOCKS = {
    ".self_attn.out_proj.": ".attn.out_proj.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}


def translate_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename transformers' tensors to open_clip's; queries, keys and values become one, projections are transposed.

    Names that are not known stay as they are, so that fitting them into a model names them.
    """
    translated: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(".position_ids"):  # 0, 1, 2, ...: old files store it
            continue
        if ".self_attn.q_proj." in name:
            parts = [tensors.get(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
            if all(part is not None for part in parts):
                joined = name.replace(".self_attn.q_proj.", ".attn.in_proj_")
                translated[_rename(joined)] = torch.cat([part for part in parts if part is not None])
        elif ".self_attn.k_proj." not in name and ".self_attn.v_proj." not in name:
            projection = name in ("visual_projection.weight", "text_projection.weight")
            translated[_rename(name)] = tensor.T.contiguous() if projection else tensor
    return translated


def _rename(name: str) -> str:
    for theirs, ours in TOWERS.items():
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
            break
    for theirs, ours in BLOCKS.items():
        name = name.replace(theirs, ours)
    return name
