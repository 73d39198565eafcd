"""What `ironclip validate --cost` says of a recipe on this machine, against the run itself.

python -m acceptance.speed_cost RECIPE OUT DATA    # runs a recipe alone in its process; prints seconds and bytes
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from acceptance.claims import ROOT, SHARED, Bound, CannotRunError, Claim, Context, Figure, at_most, item
from acceptance.command_line import environment, must
from ironclip.machine import peak_memory
from ironclip.training.cost import Cost, cost_of
from ironclip.training.engine import train
from ironclip.training.recipe import Recipe, check_recipe, load_recipe

DATA = SHARED / "data"
IMAGES = "../shared/data/tiny_imagenet/train-*.tar.gz"
VIT = "open_clip:ViT-B-32/random?seed=0"
SHORT = (
    "data.hold_out=0",
    "validation.every=1000",
    "checkpoint.every=1000",
    "optimisation.warmup_steps=0",
    "optimisation.schedule=constant",
    "sweep=null",
)
"""No validation, whose length hangs on when images break, and one checkpoint at the end: steps take the time."""


@dataclass(frozen=True)
class Setting:
    """A recipe made short.

    Attributes:
        title: For readers.
        recipe: In recipes/natural-methods.
        changes: As of `--set`.
        steps: Optimiser steps, a minute or two of them.
    """

    title: str
    recipe: str
    steps: int
    changes: tuple[str, ...] = ()

    def load(self) -> Recipe:
        path = ROOT / "recipes" / "natural-methods" / f"{self.recipe}.yaml"
        return load_recipe(path, [*SHORT, f"optimisation.steps={self.steps}", *self.changes])


SETTINGS = {
    "tecoa": Setting("TeCoA of tiny, batch 128, 3 steps of attack", "tecoa", 120),
    "fare": Setting(
        "FARE of ViT-B/32, batch 32, 10 steps of attack",
        "fare",
        10,
        (f"model={VIT}", "optimisation.batch_size=32", "attack.steps=10"),
    ),
    "agft": Setting(
        "AGFT of ViT-B/32, batch 32, the classes of Tiny-ImageNet in float32",
        "agft",
        20,
        (f"model={VIT}", "optimisation.batch_size=32"),
    ),
}


@dataclass(frozen=True)
class Run:
    """What a run took: seconds from the recipe to the result, and the most bytes its process held."""

    seconds: float
    memory: int


def run_alone(recipe: Recipe) -> Run:
    """Run a recipe from its beginning, in a process of its own."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.json"
        file.write_text(json.dumps(recipe.model_dump(mode="json", exclude_none=True)))
        command = [sys.executable, "-m", "acceptance.speed_cost", str(file), str(Path(folder) / "run"), str(DATA)]
        done = must(subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True))
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def about(cost: Cost, run: Run) -> str:
    """Say what was predicted and what was measured."""
    memory = f"{cost.peak_memory / 1e9:.2f} GB against {run.memory / 1e9:.2f} GB"
    return f"{cost.seconds:.1f} s predicted, {run.seconds:.1f} s measured; {memory}"


@item(
    "predicted_cost",
    claims=[
        claim
        for name, setting in SETTINGS.items()
        for claim in (
            Claim(name, f"{setting.title}: predicted time off the measured run's by", at_most(25, "%")),
            Claim(f"{name}_memory", "… predicted peak memory, of the measured (reported)", Bound(unit="%")),
        )
    ],
    modules=["ironclip.training.cost", "ironclip.training.engine", "ironclip.methods.fare", "ironclip.methods.agft"],
    files=[IMAGES, "src/ironclip/models/tiny/*", "recipes/natural-methods/*.yaml"],
)
def predicted_cost(context: Context) -> Iterator[Figure]:
    """Predict each setting from a few seconds of timing, then run it."""
    if context.short:
        raise CannotRunError("the short form times nothing: it runs beside other work")
    for name, setting in SETTINGS.items():
        recipe = setting.load()
        cost = cost_of(recipe)
        run = run_alone(recipe)
        off = 100 * abs(cost.seconds / run.seconds - 1)
        yield Figure(name, off, f"{off:.0f} %: {about(cost, run)}")
        share = 100 * cost.peak_memory / run.memory
        yield Figure(f"{name}_memory", share, f"{share:.0f} %")


def main(recipe: str, out: str, data: str) -> None:
    checked = check_recipe(json.loads(Path(recipe).read_text()))
    began = time.perf_counter()
    train(checked, Path(out), data_root=data, command=("acceptance", "predicted_cost"))
    print(json.dumps({"seconds": time.perf_counter() - began, "memory": peak_memory()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
