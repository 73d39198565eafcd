"""The command line: how fast it answers, and what it says to a request that is wrong."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import open_clip
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from acceptance.claims import ROOT, Claim, Context, Figure, below, exactly, item
from acceptance.command_line import IRONCLIP, environment, ironclip
from ironclip.data.classes import words_sha256
from ironclip.errors import IronClipError
from ironclip.models.sources import load_classifier


@item(
    "help_time",
    claims=[Claim("ratio", '`ironclip --help` takes under half of `python -c "import torch"`', below(0.5))],
    modules=["ironclip.cli", "ironclip.cli.app", "acceptance.command_line"],
)
def help_time(context: Context) -> Iterator[Figure]:
    script = Path(sys.executable).with_name("ironclip")
    ours = [str(script)] if script.is_file() else [*IRONCLIP]
    commands = {"help": [*ours, "--help"], "torch": [sys.executable, "-c", "import torch"]}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(5):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, check=True)
            times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    ratio = medians["help"] / medians["torch"]
    yield Figure(
        "ratio", ratio, f"{ratio:.2f} ({medians['help']:.2f} s against {medians['torch']:.2f} s, medians of 5)"
    )


@dataclass(frozen=True)
class Answer:
    """How a wrong request ended: exit code, what it said, and what it printed besides."""

    code: int
    said: str


@dataclass(frozen=True)
class Mistake:
    """A wrong request.

    Attributes:
        line: What is wrong with it.
        make: Makes the request in a folder that holds `model`, `data`, `recipe.yaml` and `suite.yaml`.
        what: Words that the line of what is wrong must hold.
        remedy: Words that the line of what to do must hold.
    """

    line: str
    make: Callable[[Path], Answer]
    what: str
    remedy: str


COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
ARCHITECTURE = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
RECIPE: dict[str, Any] = {
    "method": {"name": "tecoa"},
    "model": "local-dir:model",
    "data": {"train": "folder:{data}/colours", "templates": ["a photo of a {}."], "hold_out": 2},
    "threat": {"norm": "linf", "eps": "2/255"},
    "optimisation": {"lr": 0.001, "steps": 1, "batch_size": 4},
}


def _set_the_stage(folder: Path) -> None:
    """Write a random CLIP of a few weights, a few images in three classes, a recipe and a suite."""
    (folder / "model").mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = open_clip.CLIP(**ARCHITECTURE)
    tensors = {name: tensor.contiguous() for name, tensor in clip.state_dict().items()}
    save_file(tensors, folder / "model" / "open_clip_model.safetensors")
    config = {"model_cfg": ARCHITECTURE, "preprocess_cfg": {"size": 16}}
    (folder / "model" / "open_clip_config.json").write_text(json.dumps(config))
    for name, colour in COLOURS.items():
        (folder / "data" / "colours" / name).mkdir(parents=True)
        for index in range(4):
            pixels = np.full((16, 16, 3), colour, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "data" / "colours" / name / f"{index}.png")
    _write_recipe(folder)
    _write_suite(folder, sorted(COLOURS))


def _write_recipe(folder: Path, **changes: object) -> None:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | changes))


def _write_suite(folder: Path, names: list[str]) -> None:
    classes = {"source": "made up", "count": len(names), "sha256": words_sha256(names), "names": names}
    (folder / "names.yaml").write_text(yaml.safe_dump(classes))
    data = {
        "name": "colours",
        "title": "Colours",
        "source": "folder:{data}/colours",
        "classes": "names.yaml",
        "templates": ["a photo of a {}."],
    }
    (folder / "suite.yaml").write_text(yaml.safe_dump({"name": "c", "version": 1, "title": "C", "data": [data]}))


def _run(folder: Path, *words: object) -> Answer:
    done = ironclip(*words, cwd=folder)
    return Answer(done.returncode, done.stderr + done.stdout)


def _evaluate(folder: Path, *words: object, model: str = "local-dir:model") -> Answer:
    return _run(folder, "eval", model, "--suite", "suite.yaml", "--data-root", "data", "--out", "run", *words)


def _with_recipe(folder: Path, **changes: object) -> Answer:
    _write_recipe(folder, **changes)
    return _run(folder, "train", "recipe.yaml", "--data-root", "data", "--out", "run")


def _with_wrong_names(folder: Path) -> Answer:
    _write_suite(folder, ["red", "green"])
    return _evaluate(folder)


def _with_a_page_as_weights(folder: Path) -> Answer:
    (folder / "model" / "open_clip_model.safetensors").write_text("<!DOCTYPE html>\n<html>Sign in</html>\n")
    return _evaluate(folder)


def _with_normalised_pixels(folder: Path) -> Answer:
    """Call the API, as users do who apply mean and std themselves; no command takes tensors."""
    classifier = load_classifier(f"local-dir:{folder / 'model'}", sorted(COLOURS), ["a photo of a {}."])
    try:
        classifier.logits(torch.full((1, 3, 16, 16), -1.8))
    except IronClipError as error:
        return Answer(error.exit_code, f"Error: {error.problem}\n{error.remedy}")
    return Answer(0, "")


MISTAKES = {
    "method": Mistake(
        "unknown method",
        lambda folder: _with_recipe(folder, method={"name": "tecao"}),
        'unknown method "tecao". Did you mean "tecoa"',
        "ironclip validate",
    ),
    "attack": Mistake(
        "unknown attack",
        lambda folder: _evaluate(folder, "--attack", "pdg"),
        'unknown attack "pdg". Did you mean "pgd"',
        "ironclip list attacks",
    ),
    "eps": Mistake(
        "ε = 4", lambda folder: _evaluate(folder, "--eps", 4), "eps is 4, expected a number in", 'write "4/255"'
    ),
    "model_folder": Mistake(
        "a missing folder, of the model",
        lambda folder: _evaluate(folder, model="local-dir:nowhere"),
        "nowhere does not exist",
        "folder",
    ),
    "data_folder": Mistake(
        "a missing folder, of the data",
        lambda folder: _evaluate(folder, "--data-root", "nowhere"),
        "nowhere/colours",
        "nowhere",
    ),
    "pixels": Mistake(
        "normalised pixels", _with_normalised_pixels, "pixels range from -1.8 to -1.8", "before mean and std"
    ),
    "names": Mistake(
        "class names that do not fit the labels", _with_wrong_names, "2 class names for 3 labels", "names"
    ),
    "key": Mistake(
        "an unknown key in a recipe",
        lambda folder: _with_recipe(folder, optimization={"lr": 1.0}),
        'unknown key "optimization". Did you mean "optimisation"',
        "Mend the recipe",
    ),
    "page": Mistake("an HTML page as weights", _with_a_page_as_weights, "HTML page", "fetch"),
}


@item(
    "errors",
    claims=[
        Claim(name, f"{mistake.line}: exit 1 or 2, what is wrong and what to do, no traceback (faults)", exactly(0))
        for name, mistake in MISTAKES.items()
    ],
    modules=[
        *("acceptance.command_line", "ironclip.cli", "ironclip.cli.app"),
        *("ironclip.methods.tecoa", "ironclip.attacks.pgd"),
    ],
)
def errors(context: Context) -> Iterator[Figure]:
    for name, mistake in MISTAKES.items():
        with TemporaryDirectory() as folder:
            _set_the_stage(Path(folder))
            answer = mistake.make(Path(folder))
        lines = answer.said.strip().splitlines()
        starts = [number for number, line in enumerate(lines) if line.startswith("Error: ")]
        problem = "\n".join(lines[starts[0] : -1]) if starts else ""
        faults = {
            f"exit {answer.code}": answer.code not in (1, 2),
            "no line of what is wrong": mistake.what not in problem,
            "no line of what to do": not lines or mistake.remedy.lower() not in lines[-1].lower(),
            "a traceback": "Traceback" in answer.said,
        }
        found = [fault for fault, there in faults.items() if there]
        said = f"exit {answer.code}: {problem.removeprefix('Error: ') or answer.said[-120:]}"
        yield Figure(name, len(found), "; ".join([*found, " ".join(said.split())[:160]]))
