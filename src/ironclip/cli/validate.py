"""`ironclip validate`: check a recipe without running it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ironclip.cli.options import Json
from ironclip.cli.output import say, say_json


def validate_command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file, or a name such as quickstart/tecoa.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change a value, as train does.", metavar="KEY=VALUE")
    ] = None,
    json: Json = False,
) -> None:
    """Check a recipe without running it.

    Needs no data, no weights and no GPU.
    """
    from ironclip.training.bundled_recipes import recipe_path
    from ironclip.training.recipe import load_recipe
    from ironclip.training.recipe_file import read_recipe_file

    path, changes = recipe_path(recipe), overrides or []
    content = read_recipe_file(path, changes) if path.is_file() else {}
    if "architecture" in content:
        _pretraining(path, changes, json)
        return
    if "tower" in content:
        _vision_language(path, changes, json)
        return
    checked = load_recipe(path, changes)
    if json:
        say_json(checked.model_dump(mode="json"))
        return
    settings = checked.optimisation
    length = f"{settings.steps} steps" if settings.steps is not None else f"{settings.epochs} epochs"
    say(f"{recipe} is a recipe: {checked.title or checked.method['name']}")
    say(f"  method        {checked.build_method()}")
    say(f"  adversary     {checked.build_threat().caption()}")
    say(f"  attack        {checked.build_attack()}")
    say(f"  optimisation  {settings.optimiser}, lr {settings.lr}, batch {settings.batch_size}, {length}")
    say(f"  data          {checked.data.train}")
    say(f"  model         {checked.model}")


def _pretraining(path: Path, changes: list[str], json: bool) -> None:
    """Check a recipe of a small CLIP, which alone has an architecture."""
    from ironclip.pretraining.recipe import load_pretrain_recipe

    checked = load_pretrain_recipe(path, changes)
    if json:
        say_json(checked.model_dump(mode="json"))
        return
    images = checked.images
    batch = sum(source.per_batch for source in images.sources.values())
    say(f"{path} is a recipe of pre-training: {checked.title or path.stem}")
    say(f"  words         {checked.language.distillation.steps} steps to {checked.language.targets}")
    say(f"  images        {images.steps} steps of {batch}, {images.optimiser}, lr {images.lr}")
    say(f"  data          {', '.join(source.source for source in images.sources.values())}")


def _vision_language(path: Path, changes: list[str], json: bool) -> None:
    """Check a recipe of a small vision-language model, which alone stands on a tower."""
    from ironclip.pretraining.vlm.recipe import load_vlm_recipe

    checked = load_vlm_recipe(path, changes)
    if json:
        say_json(checked.model_dump(mode="json"))
        return
    say(f"{path} is a recipe of a vision-language model: {checked.title or path.stem}")
    say(f"  tower         {checked.tower}, {checked.decoder}")
    say(f"  optimisation  {checked.steps} steps of {checked.optimisation().batch_size}, lr {checked.lr}")
    say(f"  data          {', '.join(source.source for source in checked.sources.values())}")
