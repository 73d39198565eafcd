"""Adapters, prompts, weights between two models, exports: what small parts must keep to, on the bundled model."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import open_clip
import torch
from torch import Tensor

from acceptance.claims import CannotRunError, Claim, Context, Figure, at_most, below, exactly, item
from ironclip.errors import ConfigError
from ironclip.methods.base import METHODS
from ironclip.models.clip import CLIPModel
from ironclip.models.sources import load_model
from ironclip.models.tuning import Tunable
from ironclip.models.zero_shot import ZeroShotClassifier
from ironclip.training.engine import train
from ironclip.training.recipe import check_recipe

MODEL = "tiny"
FILES = ("src/ironclip/models/tiny/*",)
NAMES, TEMPLATES = ("circle", "square", "triangle"), ("a photo of a {}.",)
TEXTS = ["a photo of a dog.", "7", "A very long-legged FLAMINGO in the morning, at 5 o'clock"]


def part(module: str) -> ModuleType:
    """Import a module of ours that may not be there.

    Raises:
        CannotRunError: It is not.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise CannotRunError(f"{error.name} is not there") from None


def few_steps(out: Path, **method: Any) -> Path:
    """Tune the bundled model for two steps on bundled images."""
    recipe = check_recipe(
        {
            "method": method,
            "model": MODEL,
            "data": {"train": "bundled:shapes?split=train", "hold_out": 0, "limit": 64},
            "threat": {"eps": "2/255"},
            "attack": {"name": "pgd_m", "steps": 1},
            "optimisation": {"lr": 1e-3, "steps": 2, "batch_size": 16, "precision": "float32"},
        }
    )
    return train(recipe, out)


def pixels_of(model: CLIPModel, count: int = 8) -> Tensor:
    """Draw images of the model's size."""
    side = model.input_resolution
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@item(
    "adapters",
    claims=[
        Claim("full", "r_adapter at full rank on the shapes of ViT-B/16 tunes", exactly(20_447_232, "parameters")),
        Claim("rank 128", "… and at rank 128", exactly(7_864_320, "parameters")),
        Claim("merged", "merged and unmerged logits (largest difference)", at_most(1e-4)),
        Claim("moved", "… which the adapters had moved by (so that there was something to merge)", exactly(1)),
    ],
    modules=["ironclip.models.adapters", "ironclip.models.sources"],
    files=FILES,
)
def adapters(context: Context) -> Iterator[Figure]:
    module = part("ironclip.models.adapters")
    shapes = open_clip.get_model_config("ViT-B-16")
    sizes = [(shapes[tower]["layers"], shapes[tower]["width"]) for tower in ("vision_cfg", "text_cfg")]
    for claim, rank in (("full", None), ("rank 128", 128)):
        with torch.device("meta"):
            made = module.Adapters(*sizes, rank)
        count = sum(parameter.numel() for parameter in made.parameters())
        yield Figure(claim, count, f"{count:,}")
    model = load_model(MODEL)
    plain, pixels = _logits(model), pixels_of(model)
    before = plain(pixels)
    model.attach(module.Adapters.drawn(model, None, 0))
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.adapters.parameters():  # type: ignore[union-attr]  # attached in the line above
            parameter.copy_(0.02 * torch.randn(parameter.shape, generator=random))
    unmerged = _logits(model)(pixels)
    module.merge_adapters(model)
    merged = _logits(model)(pixels)
    yield Figure("merged", float((merged - unmerged).abs().max()))
    moved = float((unmerged - before).abs().max())
    yield Figure("moved", float(moved > 0.1), f"{moved:.2f} at most")


def _logits(model: CLIPModel) -> Any:
    return ZeroShotClassifier(model.requires_grad_(False), NAMES, TEMPLATES).logits


PROMPTS = tuple(name for name in METHODS if METHODS.get(name).trains is Tunable.PROMPTS)


@item(
    "prompt_folders",
    claims=[Claim(name, f"{name}: what a run leaves, without its resume state", below(1, "MB")) for name in PROMPTS]
    or [Claim("prompts", "what a run of prompts leaves", below(1, "MB"))],
    modules=["ironclip.training.engine", *sorted({METHODS.get(name).__module__ for name in PROMPTS})],
    files=FILES,
)
def prompt_folders(context: Context) -> Iterator[Figure]:
    if not PROMPTS:
        raise CannotRunError("no registered method tunes prompts")
    for name in PROMPTS:
        with TemporaryDirectory() as folder:
            run = few_steps(Path(folder) / "run", name=name)
            files = [path for path in run.rglob("*") if path.is_file()]
            kept = sum(path.stat().st_size for path in files if not path.name.startswith("checkpoint"))
            whole = sum(path.stat().st_size for path in files)
            load_model(f"run:{run}")
        yield Figure(name, kept / 1e6, f"{kept / 1e6:.3f} MB ({whole / 1e6:.3f} MB with it)")


@item(
    "robust_weight",
    claims=[
        Claim("original", "--robust-weight 0: tensors that are not the original's, bit for bit", exactly(0)),
        Claim("tuned", "--robust-weight 1: tensors that are not the run's, bit for bit", exactly(0)),
        Claim("between", "… and at 0.5 tensors that are neither", exactly(1)),
        Claim("prompts", "refused in words for runs of prompts (runs that are not)", exactly(0)),
    ],
    modules=["ironclip.training.engine", "ironclip.models.sources", "ironclip.methods.tecoa"],
    files=FILES,
)
def robust_weight(context: Context) -> Iterator[Figure]:
    part("ironclip.models.interpolation")
    with TemporaryDirectory() as folder:
        run = few_steps(Path(folder) / "tecoa", name="tecoa")
        ends = {"original": load_model(MODEL), "tuned": load_model(f"run:{run}")}
        for (claim, end), weight in zip(ends.items(), (0, 1), strict=True):
            wrong, count = _differing(load_model(f"run:{run}?robust_weight={weight}"), end)
            yield Figure(claim, wrong, f"{wrong} of {count}")
        between = load_model(f"run:{run}?robust_weight=0.5")
        neither = min(_differing(between, end)[0] for end in ends.values())
        yield Figure("between", float(neither > 0), f"{neither} tensors")
        refused = {
            name: _refusal(few_steps(Path(folder) / name, name=name))
            for name in PROMPTS[: context.pick(len(PROMPTS), 1)]
        }
        if not refused:
            yield Figure("prompts", None, "no registered method tunes prompts")
            return
        wrong = [name for name, said in refused.items() if "prompts" not in said]
        yield Figure("prompts", len(wrong), "; ".join(dict.fromkeys(wrong or refused.values()))[:200])


def _refusal(run: Path) -> str:
    try:
        load_model(f"run:{run}?robust_weight=0.5")
    except ConfigError as error:
        return error.problem.replace(str(run), run.name)
    return ""


def _differing(first: CLIPModel, second: CLIPModel) -> tuple[int, int]:
    ours, theirs = first.clip.state_dict(), second.clip.state_dict()
    if ours.keys() != theirs.keys():
        return len(ours.keys() ^ theirs.keys()), len(ours)
    return sum(not torch.equal(ours[name], theirs[name]) for name in ours), len(ours)


@item(
    "exports",
    claims=[
        Claim(name, f"an exported run in stock {name}: logits (largest difference)", at_most(1e-4))
        for name in ("open_clip", "transformers")
    ],
    modules=["ironclip.training.engine", "ironclip.models.export", "ironclip.methods.tecoa"],
    files=FILES,
)
def exports(context: Context) -> Iterator[Figure]:
    module = part("ironclip.models.export")
    with TemporaryDirectory() as folder:
        model = load_model(f"run:{few_steps(Path(folder) / 'run', name='tecoa')}")
        pixels = pixels_of(model)
        with torch.no_grad():
            ours = model.logit_scale * model.image_features(pixels) @ model.text_features(TEXTS).T
        for name, load in (("open_clip", _open_clips), ("transformers", _transformers)):
            place = module.export_model(model, Path(folder) / name, name)
            theirs = load(place, pixels, TEXTS)
            yield Figure(name, float((theirs - ours).abs().max()), "")


def _normalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@torch.no_grad()
def _open_clips(folder: Path, pixels: Tensor, texts: Sequence[str]) -> Tensor:
    clip, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    given = _normalised(pixels, clip.visual.image_mean, clip.visual.image_std)
    image, text, scale = clip.eval()(given, open_clip.tokenize(list(texts)))
    logits: Tensor = scale * image @ text.T
    return logits


@torch.no_grad()
def _transformers(folder: Path, pixels: Tensor, texts: Sequence[str]) -> Tensor:
    transformers = part("transformers")
    clip = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers.CLIPProcessor.from_pretrained(folder).tokenizer
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    given = _normalised(pixels, settings["image_mean"], settings["image_std"])
    tokens = tokenizer(list(texts), padding="max_length", return_tensors="pt")
    logits: Tensor = clip(**tokens, pixel_values=given).logits_per_image
    return logits
