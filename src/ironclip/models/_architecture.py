"""Architectures: open_clip's configurations, checked before anything is downloaded or built.

What open_clip only warns of, or passes over, is an error here: activations that differ from those the weights were
trained with, keys that no tower knows, towers whose scores are not scaled cosines.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from open_clip.pretrained import get_pretrained_cfg
from torch import nn

from ironclip.errors import ConfigError, did_you_mean
from ironclip.models._files import first_line
from ironclip.models.preprocessing import Preprocessing

# Where exporters write down which model the weights came from.
_NAME_KEYS = ("_name_or_path", "model_name", "name")


@dataclass(frozen=True)
class Blueprint:
    """What a model's files say of it.

    Attributes:
        architecture: open_clip's `model_cfg`.
        preprocess: open_clip's `preprocess_cfg`.
        hints: Names that the files carry, which may tell the activation of the weights.
    """

    architecture: dict[str, Any]
    preprocess: dict[str, Any]
    hints: tuple[str, ...] = ()


def read_open_clip(config: Mapping[str, Any], where: object) -> Blueprint:
    """Read the content of open_clip_config.json.

    Raises:
        ConfigError: It has no `model_cfg`.
    """
    architecture = config.get("model_cfg")
    if not isinstance(architecture, dict):
        raise ConfigError(
            f"open_clip_config.json of {where} has no model_cfg.", "Take the file that belongs to the weights."
        )
    hints = tuple(str(config[key]) for key in _NAME_KEYS if config.get(key))
    return Blueprint(copy.deepcopy(architecture), dict(config.get("preprocess_cfg") or {}), hints)


def check_architecture(architecture: Mapping[str, Any], where: object) -> None:
    """Refuse what IronCLIP does not serve, and keys that open_clip does not know.

    Raises:
        ConfigError: SigLIP, CoCa, a text tower or tokenizer of transformers, an unknown or missing key.
    """
    absent = [key for key in ("vision_cfg", "text_cfg") if not isinstance(architecture.get(key), Mapping)]
    if absent or "embed_dim" not in architecture:
        raise ConfigError(
            f"the model_cfg of {where} has no {', '.join(absent or ['embed_dim'])}.",
            "Take the file that belongs to the weights.",
        )
    text = architecture["text_cfg"]
    if architecture.get("init_logit_bias") is not None:
        raise ConfigError(
            f"{where} is a SigLIP model: its logits have a bias, so its scores are not scaled cosines.",
            "IronCLIP serves CLIP models with a softmax over logits; load one of those.",
        )
    if "multimodal_cfg" in architecture:
        raise ConfigError(
            f"{where} is a CoCa model, with a text decoder.", "IronCLIP serves two towers; load a CLIP model."
        )
    if text.get("hf_model_name") or text.get("hf_tokenizer_name"):
        used = text.get("hf_model_name") or text["hf_tokenizer_name"]
        raise ConfigError(
            f'the text tower of {where} needs "{used}" of transformers.',
            "IronCLIP serves CLIP's own text tower and tokenizer; load a model that has them.",
        )
    _refuse_unknown("", architecture, {*inspect.signature(open_clip.CLIP).parameters, "custom_text"}, where)
    for key, tower in (("vision_cfg", open_clip.CLIPVisionCfg), ("text_cfg", open_clip.CLIPTextCfg)):
        _refuse_unknown(f"{key}.", architecture[key], {field.name for field in dataclasses.fields(tower)}, where)


def _refuse_unknown(prefix: str, given: Iterable[str], known: set[str], where: object) -> None:
    lines = [
        f'{where}: unknown key "{prefix}{key}" in the architecture.{did_you_mean(key, known)}'
        for key in given
        if key not in known
    ]
    if lines:
        raise ConfigError(
            "\n".join(lines), f"open_clip {open_clip.__version__} does not know it: correct it, or update open_clip."
        )


def activation_by_name(hint: str) -> tuple[bool, str] | None:
    """Say whether weights of this name need QuickGELU, and why; None if the name does not tell.

    Args:
        hint: The name of an architecture, a hub repository, a folder, or `ARCHITECTURE/TAG` of open_clip.
    """
    wanted = hint.lower().rstrip("/")
    if wanted.endswith("-quickgelu"):
        return True, f'weights called "{hint}"'
    found: dict[bool, str] = {}
    for architecture, tag in open_clip.list_pretrained():
        settings = get_pretrained_cfg(architecture, tag)
        repository = settings.get("hf_hub", "").rpartition("/")[0].lower()
        names = {repository, repository.rpartition("/")[2], f"{architecture}/{tag}".lower()} - {""}
        if wanted in names:
            found[bool(settings.get("quick_gelu"))] = f"open_clip's {architecture}/{tag}"
    return next(iter(found.items())) if len(found) == 1 else None


def check_activation(architecture: Mapping[str, Any], hints: Iterable[str], where: object) -> None:
    """Refuse weights that were trained with the other activation, which would run and give wrong numbers.

    Raises:
        ConfigError: A hint tells that the weights need QuickGELU and the configuration has GELU, or the reverse.
    """
    configured = bool(architecture.get("quick_gelu", False))
    for hint in hints:
        known = activation_by_name(hint)
        if known is not None and known[0] != configured:
            needed, reason = known
            raise activation_mismatch(
                where,
                needed,
                reason,
                f'Write "quick_gelu": {str(needed).lower()} into model_cfg of open_clip_config.json.',
            )


def activation_mismatch(where: object, needed: bool, reason: str, remedy: str) -> ConfigError:
    """Return the error that names both activations."""
    names = {True: "QuickGELU", False: "GELU"}
    return ConfigError(
        f"{where} is configured with {names[not needed]}, but {reason} were trained with {names[needed]}: "
        "the model would run and give wrong scores.",
        remedy,
    )


def build_clip(architecture: Mapping[str, Any], where: object, *, seed: int = 0) -> nn.Module:
    """Build an open_clip model with random weights, a function of the seed; no global random state is touched.

    Raises:
        ConfigError: The sizes do not go together.
    """
    settings = copy.deepcopy(dict(architecture))
    tower = open_clip.CustomTextCLIP if settings.pop("custom_text", False) else open_clip.CLIP
    if settings["vision_cfg"].get("timm_model_name"):
        settings["vision_cfg"]["timm_model_pretrained"] = False
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the generators of all accelerators.
        torch.default_generator.manual_seed(seed)
        try:
            clip: nn.Module = tower(**settings)
        except (AssertionError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
            raise ConfigError(
                f"open_clip cannot build the architecture of {where}: {first_line(error)}.", "Correct its model_cfg."
            ) from error
    return clip


def preprocessing_of(clip: Any, preprocess: Mapping[str, Any], where: object) -> Preprocessing:
    """Return what happens between pixels and the tower, at the tower's own resolution.

    Raises:
        ConfigError: The tower does not read squares, or the configuration asks for what is not served.
    """
    size = clip.visual.image_size
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ConfigError(f"the image tower of {where} reads {tuple(size)} pixels.", "IronCLIP serves square inputs.")
    return Preprocessing.from_open_clip(preprocess, sides.pop())
