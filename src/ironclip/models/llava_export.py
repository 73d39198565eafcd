"""Write a LLaVA folder in which only the tower's weights have changed: what loads the one loads the other.

The language model is never loaded: files are copied, and of the safetensors those tensors are replaced that belong to
the tower, in their own precision.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ironclip.errors import ConfigError, MissingDependencyError, WeightsError
from ironclip.files import replace_durably, write_atomically
from ironclip.models._files import Folder, first_line, read_json
from ironclip.models.clip import CLIPModel
from ironclip.models.export import refuse_occupied, with_merged_adapters
from ironclip.models.llava import check_architecture_of_tower, refuse_other_models, tower_weights

_TOWER = "vision_tower."
_PREFIX = "vision_model."


def export_into_llava(model: CLIPModel, stock: Path, folder: Path) -> Path:
    """Write a copy of a LLaVA that stands on another tower.

    Args:
        model: The CLIP whose image tower it gets; adapters are merged into its weights.
        stock: A LLaVA in the hub's layout, with safetensors; it stays as it is.
        folder: Where to; made if it is not there, and empty.

    Returns:
        The folder.

    Raises:
        ConfigError: The stock is no LLaVA on a CLIP tower, the tower is of another architecture or resolution, or
            carries prompts; or the folder is not empty.
        WeightsError: The stock's weights are missing, damaged or without the tower's tensors.
        MissingDependencyError: transformers is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise MissingDependencyError("transformers", "hf", purpose="a LLaVA model") from None
    refuse_occupied(folder)
    files, origin = Folder(stock), model.spec.origin
    config_path = files.find("config.json")
    if config_path is None:
        raise files.missing("config.json")
    config = read_json(config_path)
    refuse_other_models(config, files)
    if model.prompts is not None:
        raise ConfigError(
            f"{origin} reads learned prompts, which a LLaVA's tower has no place for.", "Tune the tower itself."
        )
    vision = transformers.CLIPVisionConfig(**config["vision_config"])
    check_architecture_of_tower(model, vision, str(files))
    if model.input_resolution != vision.image_size:
        raise ConfigError(
            f"{origin} reads {model.input_resolution} pixels, the tower of {files} {vision.image_size}.",
            f"Tune a tower at {vision.image_size}, or put it into a LLaVA that was trained at "
            f"{model.input_resolution}: the language model has met no other number of patches.",
        )
    tensors = {name.removeprefix(_PREFIX): value for name, value in tower_weights(with_merged_adapters(model)).items()}
    shards = sorted(stock.glob("*.safetensors"))
    _refuse_incomplete(shards, tensors, stock)
    folder.mkdir(parents=True, exist_ok=True)
    for shard in shards:
        _write_shard(shard, tensors, folder / shard.name)
    others = [path for path in sorted(stock.iterdir()) if path.is_file() and path not in shards]
    # The configuration last: what reads a folder in the making finds none, and says so.
    for path in sorted(others, key=lambda path: path.name == "config.json"):
        write_atomically(folder / path.name, path.read_bytes())
    return folder


def _tower_name(name: str) -> str | None:
    """Return the name of a stored tensor within the tower; None for one of the language model."""
    _, found, inner = name.partition(_TOWER)
    return inner.removeprefix(_PREFIX) if found else None


def _refuse_incomplete(shards: list[Path], tensors: Mapping[str, Tensor], stock: Path) -> None:
    """Refuse a folder that does not hold each of the tower's tensors, before anything is written."""
    if not shards:
        raise WeightsError(f"{stock} holds no safetensors.", "Save the model anew with safe_serialization=True.")
    stored: set[str | None] = set()
    for shard in shards:
        try:
            with safe_open(shard, framework="pt") as file:
                stored |= {_tower_name(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        except SafetensorError as error:
            raise WeightsError(f"{shard} is damaged ({first_line(error)}).", "Fetch the file anew.") from None
    if missing := sorted(tensors.keys() - stored):
        raise WeightsError(
            f"{stock} lacks {len(missing)} tensors of its tower ({', '.join(missing[:3])}).", "Fetch the folder anew."
        )


def _write_shard(shard: Path, tensors: Mapping[str, Tensor], path: Path) -> None:
    with safe_open(shard, framework="pt") as file:
        metadata = file.metadata()
        content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    for name, value in content.items():
        inner = _tower_name(name)
        if inner is not None and inner in tensors:
            content[name] = tensors[inner].detach().cpu().to(value.dtype).contiguous()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file(content, temporary, metadata=metadata)
    replace_durably(temporary, path)
