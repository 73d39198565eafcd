"""A training step to be timed: the trainer of a recipe on a batch of made-up images that lie in memory."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from ironclip.benchmarking.measuring import in_turns, timed
from ironclip.data.contract import Sample
from ironclip.methods.base import METHODS, Teacher
from ironclip.models.clip import CLIPModel
from ironclip.models.kernels import choose_kernels
from ironclip.models.sources import load_model
from ironclip.training.recipe import Recipe, check_recipe
from ironclip.training.setup import assemble
from ironclip.training.trainer import Trainer

MADE_UP = "made up"
TEMPLATE = "This is a photo of a {}"

_PUBLISHED: dict[str, dict[str, Any]] = {
    "fare": {
        "threat": {"norm": "linf", "eps": "2/255"},
        "attack": {"name": "pgd_v", "steps": 10, "step_size": "1/255"},
        "optimisation": {"optimiser": "adamw", "lr": 1e-5, "weight_decay": 1e-4},
    }
}
"""Settings that are not those of TeCoA, which most methods took over (plan of methods, section 3)."""


class MadeUpImages:
    """Images drawn from a seed, one after the other of each class; a `Dataset`.

    Args:
        count: Images.
        side: Of each, in pixels.
        classes: Named "thing 0", "thing 1", ...
    """

    def __init__(self, count: int, side: int, classes: int) -> None:
        self.side = side
        self.source = MADE_UP
        self.fingerprint = f"{MADE_UP} {count} {side} {classes}"
        self.problems: tuple[str, ...] = ()
        self.keys: Sequence[str] = [f"{MADE_UP}/{row:06}" for row in range(count)]
        rows = [row % classes for row in range(count)]
        self.labels: Sequence[int] | None = rows
        self.class_names: Sequence[str] | None = class_names(classes)
        self.templates: Sequence[str] | None = (TEMPLATE,)
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> Sample:
        """Draw an image; the same one each time."""
        random = torch.Generator().manual_seed(position)
        return Sample(self.keys[position], torch.rand(3, self.side, self.side, generator=random), self._rows[position])


@dataclass(frozen=True)
class StepSpeed:
    """What was measured of a training step; seconds for one batch.

    Attributes:
        method: That was trained with.
        batch: Images a step.
        classes: Whose prompts the images are compared with.
        rounds: Times that each was measured.
        stock: With stock open_clip's towers under bfloat16 autocast.
        ours: With the fast path.
    """

    method: str
    batch: int
    classes: int
    rounds: int
    stock: float
    ours: float


def class_names(count: int) -> list[str]:
    """Return words for so many made-up classes."""
    return [f"thing {number}" for number in range(count)]


def published_recipe(method: str, *, batch: int, options: dict[str, Any] | None = None, **settings: Any) -> Recipe:
    """Return a recipe of a method as it was published, for as many steps as anyone may time.

    Args:
        method: Name in the registry.
        batch: Images a step.
        options: Of the method.
        settings: Of the optimisation, such as `precision`.

    Raises:
        RegistryError: There is no such method.
    """
    METHODS.get(method)
    own = _PUBLISHED.get(method, {})
    optimisation = {"optimiser": "sgd", "lr": 1e-5, "schedule": "constant", "steps": 10**6, "batch_size": batch}
    return check_recipe(
        {
            "title": "a benchmark",
            "method": {"name": method, **(options or {})},
            "model": MADE_UP,
            "data": {"train": MADE_UP, "hold_out": 0},
            "threat": own.get("threat", {"norm": "linf", "eps": "1/255"}),
            "attack": own.get("attack", {"name": "pgd_m", "steps": 2, "step_size": "1/255"}),
            "optimisation": optimisation | own.get("optimisation", {}) | settings,
        }
    )


def made_up_trainer(recipe: Recipe, model: CLIPModel, *, classes: int) -> Trainer:
    """Return the trainer of a recipe on made-up images of the model's own resolution, one batch of them.

    Args:
        recipe: Whose model and data are not opened.
        model: Where tuning begins; it becomes the student, and a copy of it the teacher.
        classes: Whose prompts the images are compared with.
    """
    method = recipe.build_method()
    model.spec = replace(model.spec, preprocessing=method.preprocessing(model.spec.preprocessing))
    teacher = Teacher(copy.deepcopy(model, {id(model.tokenizer): model.tokenizer}))
    data = MadeUpImages(recipe.optimisation.batch_size, model.input_resolution, classes)
    trainer = assemble(recipe, model, teacher, data, (class_names(classes), (TEMPLATE,)))
    for one in (model, teacher.model):
        choose_kernels(one, recipe.optimisation.batch_size, trainer.precision)
    return trainer


class OurStep:
    """The step of a trainer on the one batch of its data.

    Args:
        trainer: Made by `made_up_trainer`.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.samples = [trainer.data[position] for position in range(len(trainer.data))]

    def __call__(self) -> dict[str, float]:
        """Do an optimiser step; what is logged of it."""
        return self.trainer.step(self.samples, epoch=0)


def measure_step(
    source: str, method: str, *, device: str = "cpu", batch: int = 32, classes: int = 100, rounds: int = 5
) -> StepSpeed:
    """Measure the training step of a method with the fast path and without.

    Args:
        source: Of the model.
        method: Name in the registry.
        device: Where to train.
        batch: Images a step.
        classes: Whose prompts the images are compared with.
        rounds: How often each is measured, after one round that does not count.

    Raises:
        ConfigError, RegistryError, WeightsError: See `load_model`; or there is no such method.
    """
    recipe = published_recipe(method, batch=batch)
    steps = {
        name: OurStep(made_up_trainer(recipe, load_model(source, device=device, fast=name == "ours"), classes=classes))
        for name in ("stock", "ours")
    }
    medians = in_turns({name: partial(timed, step, device) for name, step in steps.items()}, rounds)
    return StepSpeed(method, batch, classes, rounds, **medians)
