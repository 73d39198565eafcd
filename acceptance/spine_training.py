"""The main job on natural images, first half: tune the trial model three ways, each with its sweep."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from acceptance.claims import ROOT, SHARED, CannotRunError, Claim, Context, Figure, exactly, item
from acceptance.store import key_of, stored_path
from ironclip.data.fingerprints import file_sha256
from ironclip.training.engine import train
from ironclip.training.recipe import load_recipe

METHODS = ("clean", "tecoa", "fare")
DATA = str(SHARED / "data")
KEPT = ROOT / "runs" / "acceptance" / "spine"


@item(
    "natural_training",
    claims=(
        Claim("images", "every method: the same training images (largest difference in number)", exactly(0)),
        Claim("steps", "every method: the same optimiser steps (largest difference)", exactly(0)),
        Claim("attack", "tecoa and fare: the same attack steps an optimiser step (difference)", exactly(0)),
        Claim("skipped", "steps skipped for a loss that was not finite", exactly(0)),
        Claim("sweep", "learning rates tried for each method, on 1,000 held-out training images", exactly(3)),
    ),
    modules=(
        "ironclip.training.engine",
        *(f"ironclip.methods.{method}" for method in METHODS),
        "ironclip.attacks.pgd",
    ),
    files=("recipes/natural/*.yaml", "../shared/data/tiny_imagenet/train-*.tar.gz", "../shared/models/tiny-trial/*"),
)
def training(context: Context) -> Iterator[Figure]:
    """Run the three recipes, each with its sweep; resumes where it stopped."""
    if context.short:
        raise CannotRunError("half an hour of training; the tests train in small")
    recipes = {method: load_recipe(ROOT / "recipes" / "natural" / f"{method}.yaml") for method in METHODS}
    results, sweeps = {}, {}
    for method, recipe in recipes.items():
        out = train(recipe, context.work / method, data_root=DATA, command=("acceptance", "natural_training", method))
        results[method] = json.loads((out / "result.json").read_text())
        sweeps[method] = json.loads((out / "sweep" / "result.json").read_text())
    images = [result["images"] for result in results.values()]
    steps = [result["steps"] for result in results.values()]
    attack = [recipes[method].attack["steps"] for method in ("tecoa", "fare")]
    yield Figure("images", max(images) - min(images), f"{images[0]:,} images each")
    yield Figure(
        "steps", max(steps) - min(steps), f"{steps[0]} steps of {recipes['tecoa'].optimisation.batch_size} each"
    )
    yield Figure("attack", max(attack) - min(attack), f"{attack[0]} attack steps in each; clean has no attack")
    yield Figure("skipped", sum(result["skipped_steps"] for result in results.values()))
    chosen = ", ".join(f"{method} {sweep['chosen']:g} of {_rates(sweep)}" for method, sweep in sweeps.items())
    yield Figure("sweep", min(len(sweep["trials"]) for sweep in sweeps.values()), chosen)


def _rates(sweep: dict[str, dict[str, dict[str, float]]]) -> str:
    tried = (f"{trial['lr']:g}: {100 * trial['robust_accuracy']:.1f} %" for trial in sweep["trials"].values())
    return f"({', '.join(tried)})"


def tuned(method: str) -> Path:
    """Return the run of a method that the training item left, under the key of now."""
    return stored_path(KEPT, training, key_of(training)).with_suffix("") / method


def tuned_weights() -> str:
    """Return the hashes of the tuned weights.

    Raises:
        CannotRunError: They are not trained yet.
    """
    files = [tuned(method) / "model" / "open_clip_model.safetensors" for method in METHODS]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise CannotRunError(f"natural_training has not left {missing[0]}")
    return " ".join(file_sha256(file) for file in files)
