"""Weights: read without running code, checked, hashed, fitted into a model, written whole or not at all."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ironclip.errors import WeightsError
from ironclip.files import replace_durably
from ironclip.models._files import first_line, refuse_impostor

logger = logging.getLogger(__name__)

# What torch raises on bytes that are no file of its own, found by giving it texts and flipping and cutting bytes.
_UNREADABLE = (
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    struct.error,
)

# OpenAI's own checkpoints carry these beside the weights; they are sizes, and a mark of where the file comes from.
OPENAI_SIZES = frozenset({"input_resolution", "context_length", "vocab_size"})


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read tensors by name, from safetensors, or from a PyTorch file with `weights_only=True`.

    Raises:
        WeightsError: Not weights, damaged, or holding objects that only running code could read.
    """
    content = read_content(path)
    return content if path.suffix == ".safetensors" else _tensors_of(content, path)


def read_content(path: Path, *, safe: Sequence[Callable[..., object] | tuple[Callable[..., object], str]] = ()) -> Any:
    """Read a file of weights as it is: tensors by name, or what a PyTorch file holds around them.

    Args:
        path: The file.
        safe: Further types that may be read from a PyTorch file, in the form of `torch.serialization.safe_globals`.

    Raises:
        WeightsError: See `read_weights`.
    """
    refuse_impostor(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise WeightsError(
                f"{path} is truncated or no safetensors file ({path.stat().st_size:,} bytes; {first_line(error)}).",
                "Fetch the file anew and compare its size.",
            ) from None
    logger.warning("%s is a pickle: it is read with weights_only=True, which loads tensors and runs no code.", path)
    with torch.serialization.safe_globals(list(safe)):
        return _read_pickle(path)


def _read_pickle(path: Path) -> object:
    holds = "Python objects besides tensors"
    is_zip = zipfile.is_zipfile(path)
    if is_zip and _is_torchscript(path):
        holds = "a TorchScript program"
    else:
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except _UNREADABLE:
            if not is_zip:
                raise WeightsError(
                    f"{path} is truncated or no PyTorch file ({path.stat().st_size:,} bytes).",
                    "Fetch the file anew and compare its size.",
                ) from None
    raise WeightsError(
        f"{path} holds {holds}, which could run code when loaded.",
        "Take the model's safetensors file, or save its state dict as one where you trust it.",
    )


def _is_torchscript(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _tensors_of(content: Any, path: Path) -> dict[str, Tensor]:
    """Unwrap a training checkpoint and the prefix that data parallelism leaves on names."""
    tensors = content.get("state_dict", content) if isinstance(content, Mapping) else content
    # OpenAI's sizes are plain numbers in some files.
    if not isinstance(tensors, Mapping) or not all(
        isinstance(tensor, Tensor) for name, tensor in tensors.items() if name not in OPENAI_SIZES
    ):
        raise WeightsError(f"{path} holds no tensors by name.", "Give a file with a state dict.")
    if tensors and all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return dict(tensors)


def fit(model: Any, tensors: dict[str, Tensor], where: object) -> None:
    """Copy tensors into an open_clip model, whatever their precision, and leave no weight as it was.

    Args:
        model: The model; its own (float32) precision stays.
        tensors: By open_clip's names, old ones among them.
        where: Where they come from, for errors.

    Raises:
        WeightsError: Names or shapes do not fit (how many, the first three of each), a logit bias (SigLIP), NaN.
    """
    if "logit_bias" in tensors:
        raise WeightsError(
            f"{where} holds a logit bias (SigLIP), so its scores are not scaled cosines.",
            "IronCLIP serves CLIP models with a softmax over logits; load one of those.",
        )
    tensors = convert_state_dict(model, {name: tensors[name] for name in tensors if name not in OPENAI_SIZES})
    if not hasattr(model, "positional_embedding"):
        tensors = convert_to_custom_text_state_dict(tensors)
    if "logit_scale" in tensors and tensors["logit_scale"].numel() == 1:
        tensors["logit_scale"] = tensors["logit_scale"].reshape(model.logit_scale.shape)
    fit_exactly(model, tensors, where)


def fit_exactly(model: nn.Module, tensors: dict[str, Tensor], where: object) -> None:
    """Copy tensors into a module that has exactly these names and shapes; see `fit`.

    Raises:
        WeightsError: Names or shapes do not fit (how many, the first three of each), NaN.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    _refuse_misfit(wanted, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, where)
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise WeightsError(f"{where} holds NaN or infinite weights: {_some(broken)}.", "Fetch or train them anew.")
    model.load_state_dict(tensors)


def _refuse_misfit(wanted: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], where: object) -> None:
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    misshapen = [
        f"{name} {given[name]}, expected {shape}" for name, shape in wanted.items() if given.get(name, shape) != shape
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if any(faults.values()):
        listed = "; ".join(f"{len(names)} {fault} ({_some(names)})" for fault, names in faults.items() if names)
        raise WeightsError(
            f"{where} does not fit its architecture of {len(wanted)} tensors: {listed}.",
            "Check that the configuration belongs to these weights.",
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 hex of tensors: of names, types, shapes and bytes, in the order of names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\t{tensor.dtype}\t{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_weights(model: nn.Module, path: Path, dtype: torch.dtype, *, without: tuple[str, ...] = ()) -> None:
    """Write a model's tensors, but those whose names begin so, as safetensors, whole or not at all."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name.startswith(without):
            continue
        # Scalars stay: a logit scale rounded to 16 bits would scale every logit by up to 1.6 %.
        tensors[name] = tensor.to(dtype) if tensor.is_floating_point() and tensor.numel() > 1 else tensor
    write_tensors(tensors, path)


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, whole or not at all."""
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(content, temporary, metadata={"format": "pt"})
    except SafetensorError as error:  # a full disk, as safetensors says it
        temporary.unlink(missing_ok=True)
        raise OSError(f"{path} cannot be written: {first_line(error)}") from None
    replace_durably(temporary, path)
