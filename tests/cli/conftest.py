from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from ironclip.cli import main
from made_up_colours import COLOURS, colour_suite, two_steps

ARCHITECTURE = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def ironclip(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Result]]:
    """Run `ironclip …` in an empty folder and return exit code and output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("IRONCLIP_DATA_ROOT", raising=False)
    logger = logging.getLogger("ironclip")
    before = logger.level, logger.handlers[:]

    def run(*words: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        return Result(ended.value.code if isinstance(ended.value.code, int) else 0, captured.out, captured.err)

    yield run
    logger.level, logger.handlers[:] = before


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of a few thousand weights, random, in open_clip's folder layout."""
    folder = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = open_clip.CLIP(**ARCHITECTURE)
    save_file(
        {name: tensor.contiguous() for name, tensor in clip.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    config = {"model_cfg": ARCHITECTURE, "preprocess_cfg": {"size": 16}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty images of three colours, in one folder a class."""
    root = tmp_path_factory.mktemp("data")
    noise = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        folder = root / "colours" / "test" / name
        folder.mkdir(parents=True)
        for index in range(20):
            pixels = np.clip(np.array(colour) + noise.normal(0, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return root


@pytest.fixture
def suite_file(tmp_path: Path) -> Callable[[list[str]], Path]:
    """Write a suite over the colours with the given class names."""
    return partial(colour_suite, tmp_path)


@pytest.fixture
def recipe_file(tmp_path: Path, model_folder: Path) -> Callable[..., Path]:
    """Write a recipe of two steps, with the given keys put over it."""

    def write(**changes: object) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(two_steps(model_folder) | changes, sort_keys=False))
        return path

    return write
