"""Checkpoints that robust CLIPs were published as: an image tower, wrapped in each project's own way.

    robustvlm   FARE and TeCoA of chs20/RobustVLM (`fare_eps_2.pt`): the state dict of open_clip's image tower
    agft        YuboCui/AGFT (`….pth`): {"modules": {"clip.visual": state dict}, "params": visual prompts}
    tga_zsr     zhyblue424/TGA-ZSR (`.pt`, `.pth.tar`), and the code of TeCoA, PMG-AFT and UCAT, which saves the same:
                {"vision_encoder_state_dict": …, "state_dict": visual prompts, "add_prompter": …, "optimizer": …}

The names of tensors are open_clip's in all of them. The rest of the model, its text tower above all, is not in these
files: it comes from the base, the model that was tuned. Every one of these projects begins with OpenAI's weights, so
the base has QuickGELU; a base with GELU would load without a complaint and give wrong scores.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ironclip.errors import ConfigError, WeightsError, did_you_mean
from ironclip.models._weights import fit_exactly, read_content, tensors_sha256
from ironclip.models.clip import CLIPModel


@dataclass(frozen=True)
class Layout:
    """How a project saves.

    Attributes:
        holds: What a file of it holds, in words.
        tower: Find the image tower's tensors in the content of a file; None where it is of another layout.
        prompts: Find the visual prompts beside them.
    """

    holds: str
    tower: Callable[[Any], Any]
    prompts: Callable[[Any], Any] = lambda content: {}


def _entry(content: Any, *path: str) -> Any:
    for key in path:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def _bare_tower(content: Any) -> Any:
    return content if isinstance(content, Mapping) and "conv1.weight" in content else None


LAYOUTS: dict[str, Layout] = {
    "robustvlm": Layout("the state dict of open_clip's image tower (conv1.weight, …)", _bare_tower),
    "agft": Layout(
        'modules with "clip.visual", and params',
        lambda content: _entry(content, "modules", "clip.visual"),
        lambda content: _entry(content, "params"),
    ),
    "tga_zsr": Layout(
        "vision_encoder_state_dict",
        lambda content: _entry(content, "vision_encoder_state_dict"),
        lambda content: {
            f"{part}.{name}": tensor
            for part in ("state_dict", "add_prompter")
            for name, tensor in (_entry(content, part) or {}).items()
        },
    ),
}
"""The layouts by the name of the project that published in it."""


def import_published(path: Path, layout: str, base: CLIPModel) -> CLIPModel:
    """Put the image tower of a published checkpoint into a copy of the model that it was tuned from.

    Args:
        path: The file; a PyTorch file is read with `weights_only=True`, which runs no code.
        layout: One of `LAYOUTS`.
        base: The model before its tuning, such as `open_clip:ViT-L-14-quickgelu/openai`.

    Returns:
        The robust model; its hash is that of the tensors.

    Raises:
        ConfigError: There is no such layout, or the base has GELU.
        WeightsError: The file is damaged, of another layout, holds visual prompts or objects that only running code
            could read, or its tensors are not those of the base's tower: how many, and the first three of each kind.
    """
    if layout not in LAYOUTS:
        raise ConfigError(
            f'there is no layout "{layout}" to import from.{did_you_mean(layout, LAYOUTS)}',
            f"Known layouts: {', '.join(LAYOUTS)}.",
        )
    if not base.spec.architecture.get("quick_gelu"):
        raise ConfigError(
            f"the base {base.spec.origin} has GELU, but checkpoints of the layout {layout} were tuned from OpenAI's "
            "weights, which have QuickGELU: the model would run and give wrong scores.",
            "Give OpenAI's model as the base, such as open_clip:ViT-L-14-quickgelu/openai.",
        )
    if not path.is_file():
        raise WeightsError(f"there is no file {path}.", "Give the checkpoint that was downloaded.")
    tensors = _tower(read_content(path, safe=_NUMPY_NUMBERS), LAYOUTS[layout], path)
    clip = copy.deepcopy(base.clip)
    fit_exactly(clip.visual, tensors, path)
    spec = replace(base.spec, origin=f"{layout}:{path.name}", sha256=tensors_sha256(clip.state_dict()))
    return CLIPModel(clip, base.tokenizer, spec).to(base.device)


def _tower(content: Any, layout: Layout, path: Path) -> dict[str, Tensor]:
    tensors = layout.tower(content)
    if not isinstance(tensors, Mapping) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        there = ", ".join(map(str, content))[:80] if isinstance(content, Mapping) else type(content).__name__
        fits = [name for name, other in LAYOUTS.items() if other.tower(content) is not None]
        raise WeightsError(
            f"{path} holds {there}; expected {layout.holds}.",
            f"It looks like --format {fits[0]}." if fits else "Check which project the file is from.",
        )
    prompts = [
        name
        for name, tensor in (layout.prompts(content) or {}).items()
        if isinstance(tensor, Tensor) and tensor.numel()  # none is saved as a tensor of no tokens
    ]
    if prompts:
        raise WeightsError(
            f"{path} holds visual prompts ({', '.join(prompts[:3])}), without which its tower is not the model.",
            "IronCLIP imports tuned towers; evaluate this one through python:package.module:factory.",
        )
    return dict(tensors)


def _numpy_numbers() -> list[Any]:
    """Return what a number of numpy needs to be read; the best accuracy that these projects save is one.

    It rebuilds a number from its type and bytes, and runs nothing.
    """
    scalar = np.float64(0).__reduce__()[0]
    return [
        (scalar, "numpy.core.multiarray.scalar"),  # as numpy before 2 wrote it, and as it does since
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)),
    ]


_NUMPY_NUMBERS = _numpy_numbers()
