"""Choose a learning rate by short runs, on held-out training data only; then run the recipe with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ironclip.errors import ConfigError, RunFailedError
from ironclip.files import write_atomically
from ironclip.training.recipe import Recipe


def trials(recipe: Recipe) -> dict[str, Recipe]:
    """Return the short runs of a recipe's sweep by folder name.

    Each validates once, at its end, on all held-out samples with the recipe's validation attack.

    Raises:
        ConfigError: The recipe holds no sweep, or holds out no data to judge by.
    """
    if recipe.sweep is None:
        raise ConfigError("the recipe has no sweep.", "Add `sweep: {lr: [1e-4, 3e-4], steps: 40}`.")
    if not recipe.data.hold_out:
        raise ConfigError("the sweep has no held-out data to judge by.", "Set data.hold_out to, say, 1000.")
    steps = recipe.sweep.steps
    short = {"epochs": None, "steps": steps, "warmup_steps": min(recipe.optimisation.warmup_steps, steps // 4)}
    return {
        f"lr={lr:g}": recipe.model_copy(
            update={
                "sweep": None,
                "select": "last",
                "optimisation": recipe.optimisation.model_copy(update={**short, "lr": lr}),
                "validation": recipe.validation.model_copy(update={"every": steps}),
            }
        )
        for lr in recipe.sweep.lr
    }


def choose(recipe: Recipe, out: Path, run: Callable[[Recipe, Path], object]) -> Recipe:
    """Run the trials, and return the recipe with the best learning rate and without sweep.

    Args:
        recipe: With a sweep.
        out: Trials go to `out/sweep/lr=…`, the verdict to `out/sweep/result.json`.
        run: Runs one recipe into one folder; goes on by itself, and does nothing where that run is complete.

    Raises:
        RunFailedError: No learning rate came to an end.
    """
    found: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    for name, trial in trials(recipe).items():
        folder = out / "sweep" / name
        try:
            run(trial, folder)
        except RunFailedError as error:
            failed[name] = error.problem  # a rate that diverges has lost
            continue
        found[name] = {"lr": trial.optimisation.lr, **_last_validation(folder)}
    if not found:
        raise RunFailedError(
            f"every learning rate of the sweep failed: {'; '.join(failed.values())}", "Try smaller ones."
        )
    # Robust accuracy decides; the embedding metric where there are no labels. Equal ones: the smaller rate.
    metric = "embedding_cosine" if any(f["robust_accuracy"] is None for f in found.values()) else "robust_accuracy"
    best = max(found.values(), key=lambda trial: (trial[metric], -trial["lr"]))
    verdict = {"metric": metric, "chosen": best["lr"], "trials": found, "failed": failed}
    write_atomically(out / "sweep" / "result.json", json.dumps(verdict, indent=1).encode())
    optimisation = recipe.optimisation.model_copy(update={"lr": best["lr"]})
    return recipe.model_copy(update={"sweep": None, "optimisation": optimisation})


def _last_validation(folder: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    validation: dict[str, Any] = [line["validation"] for line in lines if "validation" in line][-1]
    return validation
