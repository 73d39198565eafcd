"""`ironclip validate`: check a recipe without running it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ironclip.cli.options import Json
from ironclip.cli.output import say, say_json


def validate_command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change a value, as train does.", metavar="KEY=VALUE")
    ] = None,
    json: Json = False,
) -> None:
    """Check a recipe without running it.

    Needs no data, no weights and no GPU.
    """
    from ironclip.training.recipe import load_recipe

    checked = load_recipe(recipe, overrides or [])
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
