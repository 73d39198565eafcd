"""Runs of a few steps: a tiny CLIP on disk, made-up shards, and recipes over them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from ironclip.models.clip import CLIPModel, tokenizer_for
from ironclip.models.sources import save_model
from ironclip.training.engine import Trainer, prepare, train
from ironclip.training.recipe import Recipe, check_recipe
from made_up_shards import labelled, write_shard

NAMES = ("cat", "dog", "bird")


@pytest.fixture(scope="session")
def model_folder(tiny_clip: Callable[..., CLIPModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(tiny_clip(), folder)
    return folder


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold `toy` (38 training and 6 test images of three classes), `plain` (no labels), `damaged` (two of ten)."""
    root = tmp_path_factory.mktemp("data")
    write_shard(root / "toy" / "train-0000.tar", labelled(0, 20, 3, 16))
    write_shard(root / "toy" / "train-0001.tar.gz", labelled(20, 18, 3, 16))
    write_shard(root / "toy" / "test-0000.tar", labelled(100, 6, 3, 16))
    images = {name: content for name, content in labelled(200, 16, 3, 16).items() if name.endswith(".png")}
    write_shard(root / "plain" / "train-0000.tar", images)
    damaged = labelled(300, 10, 3, 16)
    for number in (302, 307):
        damaged[f"{number:06}.png"] = damaged[f"{number:06}.png"][:60]
    write_shard(root / "damaged" / "train-0000.tar", damaged)
    for name in ("toy", "damaged"):
        (root / name / "classes.txt").write_text("\n".join(NAMES))
        (root / name / "templates.json").write_text('["a photo of a {}."]')
    return root


@pytest.fixture
def content(model_folder: Path) -> Callable[..., dict[str, Any]]:
    """Give the content of a recipe of four steps, changed at dotted places: `content({"optimisation.lr": 0.1})`."""

    def make(changes: dict[str, Any] | None = None) -> dict[str, Any]:
        recipe: dict[str, Any] = {
            "title": "four steps",
            "method": {"name": "tecoa"},
            "model": f"local-dir:{model_folder}",
            "data": {"train": "wds:{data}/toy?split=train", "hold_out": 6},
            "threat": {"norm": "linf", "eps": "8/255"},
            "attack": {"name": "pgd_m", "steps": 1, "step_size": "4/255"},
            "optimisation": {
                "optimiser": "adamw",
                "lr": 0.002,
                "steps": 4,
                "batch_size": 8,
                "precision": "float32",
            },
            "validation": {"every": 2, "samples": 4, "attack": {"name": "pgd", "steps": 2}},
            "checkpoint": {"every": 2},
        }
        for place, value in copy.deepcopy(changes or {}).items():
            *parents, last = place.split(".")
            section = recipe
            for parent in parents:
                section = section.setdefault(parent, {})
            section[last] = value
        return recipe

    return make


@pytest.fixture
def recipe(content: Callable[..., dict[str, Any]]) -> Callable[..., Recipe]:
    """Make that recipe."""

    def make(changes: dict[str, Any] | None = None) -> Recipe:
        return check_recipe(content(changes))

    return make


@pytest.fixture
def trainer(recipe: Callable[..., Recipe], data_root: Path) -> Callable[..., Trainer]:
    """Prepare a trainer for that recipe."""

    def make(changes: dict[str, Any] | None = None, *, strict: bool = False) -> Trainer:
        return prepare(recipe(changes), device="cpu", data_root=str(data_root), strict=strict)

    return make


@pytest.fixture
def run(recipe: Callable[..., Recipe], data_root: Path, tmp_path: Path) -> Callable[..., Path]:
    """Train that recipe and return the run folder."""

    def make(changes: dict[str, Any] | None = None, *, out: str = "run", **options: Any) -> Path:
        options["data_root"] = str(options.get("data_root", data_root))
        return train(recipe(changes), tmp_path / out, **options)

    return make


def _number(value: Any) -> Any:
    """Read null, which stands for a figure that is not finite, as NaN."""
    if isinstance(value, dict):
        return {key: _number(entry) for key, entry in value.items()}
    return float("nan") if value is None else value


@pytest.fixture
def log_of() -> Callable[[Path], list[dict[str, Any]]]:
    """Read a run's log, without the clock."""

    def read(out: Path) -> list[dict[str, Any]]:
        entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        return [
            {key: _number(value) for key, value in entry.items() if key != "images_per_second"} for entry in entries
        ]

    return read


@pytest.fixture
def gradients_of() -> Callable[..., dict[str, Tensor]]:
    """Do one step of a trainer and return the gradients that its optimiser saw."""

    def step(trainer: Trainer, samples: Any = None) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}

        def look(*_: object) -> None:
            seen.update({name: p.grad.clone() for name, p in trainer.parameters.items() if p.grad is not None})

        hook = trainer.optimiser.register_step_pre_hook(look)
        epoch, batch = next(trainer.batches(strict=False))
        trainer.step(batch if samples is None else samples, epoch)
        hook.remove()
        return seen

    return step


@pytest.fixture
def weights() -> Callable[[Trainer], dict[str, Tensor]]:
    """Copy the tuned weights of a trainer."""
    return lambda trainer: {name: value.detach().clone() for name, value in trainer.parameters.items()}


@pytest.fixture(autouse=True, scope="module")
def _one_tokenizer() -> Any:
    """Read the tokenizer's tables once: half of the time that preparing a run of this size takes."""
    tokenizers: dict[str, Any] = {}

    def made(architecture: dict[str, Any]) -> Any:
        key = str(architecture["text_cfg"])
        if key not in tokenizers:
            tokenizers[key] = tokenizer_for(architecture)
        return tokenizers[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ironclip.models.sources.tokenizer_for", made)
        patch.setattr(SimpleTokenizer, "__deepcopy__", lambda self, memo: self, raising=False)
        yield


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """Products of this size are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
