"""`ironclip pretrain`: make a small CLIP from nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ironclip.cli.options import DataRoot, Device, Json, Out, Strict
from ironclip.cli.output import Display, say, say_json

if TYPE_CHECKING:
    from ironclip.pretraining.pretrain import PretrainProgress


def pretrain_command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file, such as recipes/pretrain/tiny.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change a value: --set images.steps=20000", metavar="KEY=VALUE")
    ] = None,
    out: Out = None,
    data_root: DataRoot = "data",
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Seed of every draw; the recipe's unless given.")
    ] = None,
    device: Device = "cpu",
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Train a small CLIP: first its text tower on words, then its image tower on images.

    Goes on with the run that --out holds, by default runs/pretrain/RECIPE. A finished run is made longer with a larger
    images.steps only if its learning rate has not begun to fall.
    """
    from ironclip.pretraining.pretrain import pretrain
    from ironclip.pretraining.recipe import load_pretrain_recipe

    changes = [*(overrides or []), *([f"seed={seed}"] if seed is not None else [])]
    checked = load_pretrain_recipe(recipe, changes)
    folder = out or Path("runs", "pretrain", recipe.stem)
    with Display() as display:

        def show(progress: PretrainProgress) -> None:
            display.update(progress.phase, progress.step, progress.steps, progress.status)

        pretrain(checked, folder, device=device, data_root=data_root, strict=strict, command=sys.argv, progress=show)
    if json:
        say_json({"run": str(folder), "model": str(folder / "model")})
        return
    say(f"Done: {folder}. The model: local-dir:{folder / 'model'}")
    say(f"Measure it: ironclip eval local-dir:{folder / 'model'} --data-root {data_root}")
