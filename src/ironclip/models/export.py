"""Folders that other libraries load: open_clip's layout and transformers'."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

from ironclip.errors import ConfigError, did_you_mean
from ironclip.files import write_atomically
from ironclip.models._to_transformers import (
    check_expressible,
    model_config,
    processor_config,
    rename_weights,
    tokenizer_files,
)
from ironclip.models._weights import write_tensors
from ironclip.models.adapters import merge_adapters
from ironclip.models.clip import CLIPModel
from ironclip.models.sources import save_model


def export_model(model: CLIPModel, folder: Path, layout: str) -> Path:
    """Write a model so that stock open_clip or stock transformers loads it to the same logits.

    `open_clip` is loaded with `open_clip.create_model_and_transforms("local-dir:FOLDER")`; `transformers` with
    `CLIPModel.from_pretrained(FOLDER)`, preprocessing and tokenizer with `CLIPProcessor.from_pretrained(FOLDER)`.
    IronCLIP itself loads both as `local-dir:FOLDER`. Weights are float32; adapters are merged into them.

    Args:
        model: The model.
        folder: Where to; made if it is not there, and empty.
        layout: One of `LAYOUTS`.

    Returns:
        The folder.

    Raises:
        ConfigError: There is no such layout, or it cannot express the model, or the model reads prompts, which stock
            libraries do not, or the folder is not empty.
    """
    if layout not in LAYOUTS:
        raise ConfigError(
            f'there is no layout "{layout}" to export to.{did_you_mean(layout, LAYOUTS)}',
            f"Known layouts: {', '.join(LAYOUTS)}.",
        )
    if model.prompts is not None:
        raise ConfigError(
            f"{model.spec.origin} reads learned prompts, which {layout} has no place for.",
            "Use it with IronCLIP; a run that tuned a tower or adapters can be exported.",
        )
    refuse_occupied(folder)
    LAYOUTS[layout](with_merged_adapters(model), folder)
    return folder


def with_merged_adapters(model: CLIPModel) -> CLIPModel:
    """Return a model whose weights have swallowed the adapters, a copy; the model itself where there are none."""
    if model.adapters is None:
        return model
    model = copy.deepcopy(model, {id(model.tokenizer): model.tokenizer})
    merge_adapters(model)
    return model


def refuse_occupied(folder: Path) -> None:
    """Refuse a place that holds something already.

    Raises:
        ConfigError: A file, or a folder that is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "is not empty" if folder.is_dir() else "is a file"
        raise ConfigError(f"{folder} {what}.", "Name a new folder for the model, or empty this one.")


def _write_open_clip(model: CLIPModel, folder: Path) -> None:
    save_model(model, folder)


def _write_transformers(model: CLIPModel, folder: Path) -> None:
    architecture, preprocessing = model.spec.architecture, model.spec.preprocessing
    check_expressible(architecture, preprocessing, model.spec.origin)
    config = model_config(architecture, preprocessing.resolution)
    files = tokenizer_files(config["text_config"]["max_position_embeddings"])
    files["preprocessor_config.json"] = processor_config(preprocessing)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(rename_weights(model.clip.state_dict()), folder / "model.safetensors")
    # The configuration last: what reads a folder in the making finds none, and says so.
    for name, content in (files | {"config.json": config}).items():
        text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_atomically(folder / name, text.encode())


LAYOUTS: dict[str, Callable[[CLIPModel, Path], None]] = {
    "open_clip": _write_open_clip,
    "transformers": _write_transformers,
}
"""What a model can be exported to, by the name of the library that loads it."""
