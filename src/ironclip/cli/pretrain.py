"""`ironclip pretrain`: make a small CLIP from nothing, or a small answerer that stands on one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ironclip.cli.options import DataRoot, Device, Json, Out, Strict
from ironclip.cli.output import Display, say, say_json

if TYPE_CHECKING:
    from ironclip.pretraining.pretrain import PretrainProgress
    from ironclip.pretraining.vlm.train import VlmProgress


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

    A recipe that names a tower trains a small decoder on it instead, which describes images and answers questions.
    Goes on with the run that --out holds, by default runs/pretrain/RECIPE. A finished run is made longer with a larger
    images.steps only if its learning rate has not begun to fall.
    """
    from ironclip.files import hold_folder
    from ironclip.pretraining.pretrain import pretrain
    from ironclip.pretraining.recipe import load_pretrain_recipe
    from ironclip.training.recipe_file import read_recipe_file

    changes = [*(overrides or []), *([f"seed={seed}"] if seed is not None else [])]
    folder = out or Path("runs", "pretrain", recipe.stem)
    if recipe.is_file() and "tower" in read_recipe_file(recipe, changes):
        _vision_language(recipe, changes, folder, device=device, data_root=data_root, strict=strict, json=json)
        return
    checked = load_pretrain_recipe(recipe, changes)
    with Display() as display, hold_folder(folder):

        def show(progress: PretrainProgress) -> None:
            display.update(progress.phase, progress.step, progress.steps, progress.status)

        pretrain(checked, folder, device=device, data_root=data_root, strict=strict, command=sys.argv, progress=show)
    if json:
        say_json({"run": str(folder), "model": str(folder / "model")})
        return
    say(f"Done: {folder}. The model: local-dir:{folder / 'model'}")
    say(f"Measure it: ironclip eval local-dir:{folder / 'model'} --data-root {data_root}")


def _vision_language(
    recipe: Path, changes: list[str], folder: Path, *, device: str, data_root: str, strict: bool, json: bool
) -> None:
    """Train the decoder of a small vision-language model."""
    from ironclip.files import hold_folder
    from ironclip.pretraining.vlm.recipe import load_vlm_recipe
    from ironclip.pretraining.vlm.train import train_vlm

    checked = load_vlm_recipe(recipe, changes)
    with Display() as display, hold_folder(folder):

        def show(progress: VlmProgress) -> None:
            status = f"loss {progress.loss:.3f}, {progress.images_per_second:.0f} images/s"
            display.update("decoder", progress.step, progress.steps, status)

        train_vlm(checked, folder, device=device, data_root=data_root, strict=strict, command=sys.argv, progress=show)
    if json:
        say_json({"run": str(folder), "model": str(folder / "model")})
        return
    say(f"Done: {folder}. The model: {folder / 'model'}")
