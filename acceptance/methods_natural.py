"""Tune the bundled model by every method that has a recipe in recipes/natural-methods: one setting, three seeds each.

What is chosen is chosen before a test image is read: recipes, with the three learning rates and the rule when to stop,
are committed; the rate is that of the best short run of seed 0 on held-out training images; and what was trained is
sealed by its hashes (`sealed`) before the first evaluation.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from acceptance.claims import ROOT, SHARED, CannotRunError, Claim, Context, Figure, Item, exactly, item
from acceptance.store import git, key_of, stored_path
from ironclip.data.fingerprints import file_sha256
from ironclip.files import write_atomically
from ironclip.methods.base import METHODS
from ironclip.training.engine import train
from ironclip.training.recipe import Recipe, load_recipe

FOLDER = ROOT / "recipes" / "natural-methods"
RECIPES = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
SEEDS = (0, 1, 2)
KEPT = ROOT / "runs" / "acceptance" / "methods"
DATA = str(SHARED / "data")
TINY = "src/ironclip/models/tiny/*"


def committed(*paths: Path) -> str:
    """Return the commit that holds the files as they are.

    Raises:
        CannotRunError: One has changed since, or was never committed.
    """
    names = [str(path.relative_to(ROOT)) for path in paths]
    try:
        tracked = git("ls-files", "--", *names).splitlines()
        changed = git("status", "--porcelain", "--", *names).splitlines()
        wrong = sorted({*names} - {*tracked}) + changed
        if wrong:
            raise CannotRunError(f"not committed, and so not fixed beforehand: {', '.join(wrong)}")
        return git("log", "-1", "--format=%H", "--", *names)
    except (OSError, subprocess.CalledProcessError):
        raise CannotRunError("no repository that could say what is committed") from None


def forwards(recipe: Recipe) -> int:
    """Count the passes through an image tower for one image of a step: those of the attack, and those of the loss."""
    views = {one.value.removesuffix("_patches") for one in recipe.build_method().needs if "text" not in one.value}
    attacked = any(view.endswith("adv") for view in views)
    return len(views) + (int(recipe.attack["steps"]) if attacked else 0)


def training_of(name: str) -> Item:
    """Make the item that tunes by one method."""

    @item(
        f"train_{name}",
        claims=(
            Claim("seeds", f"{name}: training seeds that came to their end", exactly(len(SEEDS))),
            Claim("rates", f"{name}: learning rates tried, on 1,000 held-out training images", exactly(3)),
            Claim("skipped", f"{name}: steps skipped for a loss that was not finite", exactly(0)),
        ),
        modules=("ironclip.training.engine", _module(name), "ironclip.attacks.pgd"),
        files=(str(RECIPES[name].relative_to(ROOT)), "../shared/data/tiny_imagenet/train-*.tar.gz", TINY),
    )
    def training(context: Context) -> Iterator[Figure]:
        if context.short:
            raise CannotRunError("minutes of training a seed; the tests train in small")
        committed(RECIPES[name])
        recipe = load_recipe(RECIPES[name])
        command = ("acceptance", f"train_{name}")
        first = train(recipe, context.work / "seed-0", data_root=DATA, command=command)
        sweep = json.loads((first / "sweep" / "result.json").read_text())
        fixed = recipe.optimisation.model_copy(update={"lr": sweep["chosen"]})
        for seed in SEEDS[1:]:
            one = recipe.model_copy(update={"sweep": None, "optimisation": fixed, "seed": seed})
            train(one, context.work / f"seed-{seed}", data_root=DATA, command=command)
        results = [json.loads((context.work / f"seed-{seed}" / "result.json").read_text()) for seed in SEEDS]
        each = f"{results[0]['images']:,} images in {results[0]['steps']} steps, {forwards(recipe)} forwards an image"
        yield Figure("seeds", len({result["weights_sha256"] for result in results}), each)
        yield Figure("rates", len(sweep["trials"]) + len(sweep["failed"]), f"{sweep['chosen']:g} of {_rates(sweep)}")
        yield Figure("skipped", sum(result["skipped_steps"] for result in results))

    return training


def _module(name: str) -> str:
    """Return where a method is; of one that is not registered, where it would be."""
    return METHODS.get(name).__module__ if name in METHODS.names() else f"ironclip.methods.{name}"


def _rates(sweep: dict[str, Any]) -> str:
    """Say what each learning rate came to, by the metric that decided."""
    tried = [f"{trial['lr']:g}: {trial[sweep['metric']]:.3f}" for trial in sweep["trials"].values()]
    return f"({', '.join([*tried, *(f'{name} failed' for name in sweep['failed'])])})"


TRAINED = {name: training_of(name) for name in RECIPES if name in METHODS.names()}


def tuned(name: str, seed: int) -> Path:
    """Return the run that the training item of a method left, under the key of now."""
    return stored_path(KEPT, TRAINED[name], key_of(TRAINED[name])).with_suffix("") / f"seed-{seed}"


def weights_of(name: str) -> str:
    """Return the hashes of what a method's seeds came to.

    Raises:
        CannotRunError: One is not trained yet.
    """
    runs = [tuned(name, seed) for seed in SEEDS]
    missing = [str(run.relative_to(ROOT)) for run in runs if not (run / "result.json").is_file()]
    if missing:
        raise CannotRunError(f"train_{name} has not finished {missing[0]}")
    # Whole weights, or prompts or adapters alone.
    return " ".join(file_sha256(file) for run in runs for file in sorted((run / "model").glob("*.safetensors")))


def sealed(name: str, folder: Path) -> str:
    """Write down, once, what an evaluation is about to read test images with; return the commit of the recipes.

    Raises:
        CannotRunError: The recipes are not committed, or what is there is not what was sealed.
    """
    commit = committed(*RECIPES.values())
    content = {
        "recipes": {path.name: file_sha256(path) for path in RECIPES.values()},
        "method": name,
        "rate": json.loads((tuned(name, 0) / "sweep" / "result.json").read_text())["chosen"],
        "weights": weights_of(name).split(),
    }
    seal = folder / "seal.json"
    if not seal.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(seal, json.dumps({"commit": commit} | content, indent=1).encode())
    kept = json.loads(seal.read_text())
    if {key: kept[key] for key in content} != content:
        raise CannotRunError(f"{seal} holds other recipes, rates or weights: test images were read with those")
    return str(kept["commit"])
