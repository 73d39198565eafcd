"""`ironclip train`: tune a model as a recipe says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ironclip.cli.options import DataRoot, Device, Json, Limit, Out, Strict
from ironclip.cli.output import Display, say, say_json, tell

if TYPE_CHECKING:
    from ironclip.training.engine import TrainingProgress


def train_command(
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE",
            help="A YAML file, the run.json of a run to repeat it, or a name such as quickstart/tecoa.",
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change a value: --set optimisation.lr=1e-4", metavar="KEY=VALUE")
    ] = None,
    out: Out = None,
    data_root: DataRoot = "data",
    limit: Limit = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Seed of every draw; the recipe's unless given.")
    ] = None,
    device: Device = "cpu",
    strict: Strict = False,
    teacher_cache: Annotated[
        Path | None,
        typer.Option(
            "--teacher-cache",
            metavar="DIR",
            help="Compute the original model's embeddings of the clean images once, for all runs with this folder.",
        ),
    ] = None,
    no_fast: Annotated[bool, typer.Option("--no-fast", help="Use open_clip's own forward pass.")] = False,
    track: Annotated[
        list[str] | None,
        typer.Option("--track", metavar="NAME", help="Show the figures in tensorboard, trackio or wandb too."),
    ] = None,
    json: Json = False,
) -> None:
    """Tune a model as a recipe says.

    Goes on with the run that --out holds, by default runs/train/RECIPE.
    """
    from ironclip.files import hold_folder
    from ironclip.training.bundled_recipes import recipe_path
    from ironclip.training.engine import train
    from ironclip.training.recipe import load_recipe
    from ironclip.training.tracking import tracked

    changes = [*(overrides or []), *([f"seed={seed}"] if seed is not None else [])]
    checked = load_recipe(recipe_path(recipe), changes)
    folder = out or Path("runs", "train", recipe.stem)
    tell(f"Adversary in training: {checked.build_threat().caption()}, {checked.attack['name']}")
    seen: list[TrainingProgress] = []
    with (
        Display() as display,
        hold_folder(folder),
        tracked(track or (), folder, checked.resolved()) as follower,
    ):

        def show(progress: TrainingProgress) -> None:
            seen[:] = [progress]
            display.update(folder.name, progress.step, progress.steps, _status(progress))
            follower.poll()

        train(
            checked,
            folder,
            device=device,
            data_root=data_root,
            limit=limit,
            strict=strict,
            teacher_cache=teacher_cache,
            fast=not no_fast,
            command=sys.argv,
            progress=show,
        )
    last = seen[0] if seen else None
    if json:
        say_json(
            {
                "run": str(folder),
                "model": str(folder / "model"),
                "clean_accuracy": last and last.clean_accuracy,
                "robust_accuracy": last and last.robust_accuracy,
            }
        )
        return
    say(f"Done: {folder}" + (f" ({_status(last)})" if last else ""))
    say(f"Measure it: ironclip eval {folder} --data-root {data_root}")


def _status(progress: TrainingProgress) -> str:
    shares = {
        "held-out clean": progress.clean_accuracy,
        "held-out robust": progress.robust_accuracy,
        "training attack": progress.attack_accuracy,
    }
    known = [f"{name} {100 * share:.1f} %" for name, share in shares.items() if share is not None]
    return ", ".join([f"loss {progress.loss:.4f}", *known, f"{progress.images_per_second:.0f} images/s"])
