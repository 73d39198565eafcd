"""`ironclip validate`: check a recipe without running it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ironclip.cli.options import Device, Json
from ironclip.cli.output import say, say_json
from ironclip.errors import ConfigError

if TYPE_CHECKING:
    from ironclip.training.cost import CostSettings
    from ironclip.training.recipe import Recipe


def validate_command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file, or a name such as quickstart/tecoa.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change a value, as train does.", metavar="KEY=VALUE")
    ] = None,
    cost: Annotated[
        bool, typer.Option("--cost", help="Say what a run costs: hours and memory, from counted operations.")
    ] = False,
    peak: Annotated[
        float | None,
        typer.Option(
            "--peak",
            min=1e6,
            metavar="FLOPS",
            help="With --cost: what large bfloat16 products reach on the device, such as 400e12. This machine is "
            "measured unless given.",
        ),
    ] = None,
    gpus: Annotated[
        int, typer.Option("--gpus", min=1, metavar="N", help="With --cost: devices that share each batch.")
    ] = 1,
    samples: Annotated[
        int | None,
        typer.Option("--samples", min=1, metavar="N", help="With --cost: training samples, where not known."),
    ] = None,
    classes: Annotated[
        int | None, typer.Option("--classes", min=1, metavar="N", help="With --cost: classes, where not known.")
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(
            "--architecture", metavar="NAME", help="With --cost: open_clip's name of the model's, such as ViT-L-14."
        ),
    ] = None,
    bandwidth: Annotated[
        float,
        typer.Option("--bandwidth", min=1e6, metavar="BYTES", help="With --cost: bytes a second between devices."),
    ] = 450e9,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Check a recipe without running it.

    Needs no data, no weights and no GPU.
    """
    from ironclip.training.bundled_recipes import recipe_path
    from ironclip.training.recipe import load_recipe
    from ironclip.training.recipe_file import read_recipe_file

    path, changes = recipe_path(recipe), overrides or []
    given = {"peak": peak, "samples": samples, "classes": classes, "architecture": architecture}
    unused = [f"--{name}" for name, value in given.items() if value is not None] + ["--gpus"] * (gpus > 1)
    if unused and not cost:
        raise ConfigError(f"{', '.join(unused)} without --cost.", "Add --cost, or leave it out.")
    content = read_recipe_file(path, changes) if path.is_file() else {}
    if "architecture" in content:
        _refuse_cost(cost, "pre-training")
        _pretraining(path, changes, json)
        return
    if "tower" in content:
        _refuse_cost(cost, "a vision-language model")
        _vision_language(path, changes, json)
        return
    checked = load_recipe(path, changes)
    if cost:
        from ironclip.training.cost import CostSettings

        where = CostSettings(
            peak=peak,
            gpus=gpus,
            samples=samples,
            classes=classes,
            architecture=architecture,
            bandwidth=bandwidth,
            device=device,
        )
        _cost(recipe, checked, where, json)
        return
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


def _cost(name: Path, recipe: Recipe, where: CostSettings, json: bool) -> None:
    """Say what a recipe costs."""
    from dataclasses import asdict

    from ironclip.training.cost import cost_of

    cost = cost_of(recipe, where)
    if json:
        say_json({**asdict(cost), "peak_memory": cost.peak_memory, "gpus": where.gpus})
        return
    step, seconds = sum(cost.step_operations.values()), sum(cost.step_seconds.values())
    say(f"{name}: {recipe.title or recipe.method['name']}")
    shares = ", ".join(f"{part} {count / step:.0%}" for part, count in cost.step_operations.items())
    say(f"  step          {step / 1e12:.4g} TFLOP: {shares}")
    say(f"  run           {cost.steps:,} steps, {cost.images:,} images, {cost.operations / 1e15:.4g} PFLOP")
    shares = ", ".join(f"{part} {count / seconds:.0%}" for part, count in cost.step_seconds.items())
    devices = "one device" if where.gpus == 1 else f"{where.gpus} devices"
    say(f"  time          {cost.seconds / 3600:.3g} h on {devices}: {seconds:.3g} s a step ({shares})")
    say(f"  speed         {cost.images_per_second:.4g} images/s")
    held = ", ".join(f"{part} {count / 1e9:.3g}" for part, count in cost.memory.items())
    say(f"  memory        {cost.peak_memory / 1e9:.3g} GB a device: {held}")
    if where.gpus > 1:
        say(f"  sent          {cost.communicated / 1e9:.3g} GB a device and step")
    for line in cost.assumed:
        say(f"  assumed       {line}")


def _refuse_cost(cost: bool, kind: str) -> None:
    if cost:
        raise ConfigError(f"--cost does not count recipes of {kind}.", "Give a recipe of ironclip train.")


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
