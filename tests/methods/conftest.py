"""One method, one fixed batch: the engine's step on samples that lie in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ironclip.data.contract import Sample
from ironclip.methods.base import Batch, Teacher
from ironclip.models.clip import CLIPModel
from ironclip.models.tuning import tuned_parameters
from ironclip.training.engine import Trainer
from ironclip.training.optimisation import build_optimiser
from ironclip.training.recipe import check_recipe
from made_up_images import natural_like

TEMPLATES = ("a photo of a {}.",)

RATES = {"tecoa_vp": 0.05}
"""Learning rates of methods whose parameters are drawn from N(0, 1), where others are of the size of weights."""


@dataclass
class InMemory:
    """Just enough of a data set for a trainer whose batches the test makes itself."""

    samples: Sequence[Sample]
    source: str = "in memory"
    fingerprint: str = "none"
    problems: tuple[str, ...] = ()
    templates: Sequence[str] | None = TEMPLATES
    class_names: Sequence[str] | None = None
    keys: Sequence[str] = field(init=False)
    labels: Sequence[int] | None = field(init=False)

    def __post_init__(self) -> None:
        self.keys = [sample.key for sample in self.samples]
        labels = [sample.label for sample in self.samples if sample.label is not None]
        self.labels = labels if len(labels) == len(self.samples) else None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> Sample:
        return self.samples[position]


@dataclass
class Bench:
    """A trainer and the one batch that it steps on, always as in epoch 0, so with the same attack draws."""

    trainer: Trainer
    samples: list[Sample]

    def step(self) -> dict[str, float]:
        return self.trainer.step(self.samples, epoch=0)

    @property
    def model(self) -> CLIPModel:
        return self.trainer.model

    @property
    def batch(self) -> Batch:
        return self.trainer._batch(self.samples)

    def gradients(self) -> dict[str, Tensor]:
        """Do a step; return the gradients that the optimiser saw."""
        seen: dict[str, Tensor] = {}

        def look(*_: object) -> None:
            seen.update({name: p.grad.clone() for name, p in self.trainer.parameters.items() if p.grad is not None})

        hook = self.trainer.optimiser.register_step_pre_hook(look)
        try:
            self.step()
        finally:
            hook.remove()
        return seen


@pytest.fixture
def bench(tiny_clip: Callable[..., CLIPModel]) -> Callable[..., Bench]:
    """Make a bench for a method by name.

    Keywords: `options` of the method, `classes` and `count` of the samples, `labelled`; `shift`, how far the student
    is moved away from the teacher before the first step; `eps`, `attack`, `text_attack`, and settings of
    `optimisation`.
    """

    def make(
        name: str,
        *,
        options: dict[str, Any] | None = None,
        classes: int = 3,
        count: int = 12,
        labelled: bool = True,
        shift: float = 0.0,
        eps: str = "8/255",
        attack: dict[str, Any] | None = None,
        text_attack: dict[str, Any] | None = None,
        **optimisation: Any,
    ) -> Bench:
        recipe = check_recipe(
            {
                "method": {"name": name, **(options or {})},
                "model": "local-dir:unused",
                "data": {"train": "wds:unused", "hold_out": 0},
                "threat": {"norm": "linf", "eps": eps},
                "attack": attack or {"name": "pgd_m", "steps": 2, "step_size": "4/255"},
                "text_attack": text_attack,
                "optimisation": {
                    "optimiser": "adam",
                    "lr": RATES.get(name, 1.0e-3),
                    "schedule": "constant",
                    "steps": 20,
                    "batch_size": count,
                    "precision": "float32",
                }
                | optimisation,
            }
        )
        images = natural_like(count, 32)
        labels = [(7 * row) % classes for row in range(count)] if labelled else [None] * count
        samples = [Sample(f"made up/{row}", images[row], labels[row]) for row in range(count)]
        method = recipe.build_method()
        model, original = tiny_clip(), tiny_clip()
        for one in (model, original):
            one.spec = replace(one.spec, preprocessing=method.preprocessing(one.spec.preprocessing))
        teacher = Teacher(original)
        method.attach(model, TEMPLATES, recipe.seed)
        model.requires_grad_(False)
        parameters = tuned_parameters(model, method.trains)
        random = torch.Generator().manual_seed(0)
        for parameter in parameters.values():
            parameter.data.add_(shift * torch.randn(parameter.shape, generator=random))
            parameter.requires_grad_(True)
        names = [f"thing {index}" for index in range(classes)]
        trainer = Trainer(
            recipe=recipe,
            method=method,
            attack=recipe.build_attack(),
            model=model,
            teacher=teacher,
            data=InMemory(samples, class_names=names),
            held_out=None,
            prompts=(names, TEMPLATES) if labelled else None,
            parameters=parameters,
            optimiser=build_optimiser(parameters.values(), recipe.optimisation),
        )
        return Bench(trainer, samples)

    return make
