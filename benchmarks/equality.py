"""Whether a published step and ours are equal work: the same loss and the same gradients from the same start."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.published import OPTIONS, STEPS, PublishedStep
from ironclip.attacks.pgd import RobustVLMPGD
from ironclip.benchmarking.step import TEMPLATE, OurStep, class_names, made_up_trainer, published_recipe
from ironclip.data.classes import fill_templates
from ironclip.models.clip import CLIPModel
from ironclip.randomness import SampleRandom

MOVED = 0.01
"""Deviation of the noise that moves both students from their teachers, where divergences from these would be 0."""


@dataclass(frozen=True)
class Pair:
    """Both steps on the same weights, images, prompts; the students moved alike."""

    ours: OurStep
    theirs: PublishedStep

    def start(self) -> Tensor:
        """Return the perturbation that our training attack begins with in epoch 0."""
        trainer = self.ours.trainer
        random = SampleRandom(trainer.recipe.seed, trainer.data.keys, "train|0|0")  # epoch, restart
        clip = not isinstance(trainer.attack, RobustVLMPGD)
        pixels = self.theirs.pixels
        return trainer.recipe.build_threat().random_start(pixels, random, clip=clip) - pixels

    def gaps(self) -> tuple[float, float]:
        """Do both steps; return the relative differences of the losses and of the gradients of all weights."""
        seen: dict[str, Tensor] = {}
        parameters, optimiser = self.ours.trainer.parameters, self.ours.trainer.optimiser
        hook = optimiser.register_step_pre_hook(
            lambda *_: seen.update({name: p.grad.clone() for name, p in parameters.items() if p.grad is not None})
        )
        loss = float(self.theirs(self.start()))
        logged = self.ours()["loss"]
        hook.remove()
        found = dict(self.theirs.clip.named_parameters())
        own = torch.cat([value.flatten() for value in seen.values()])
        other = torch.cat([_gradient(found[name]).flatten() for name in seen])
        return abs(loss / logged - 1), float((own - other).norm() / own.norm())


def pair(method: str, model: CLIPModel, *, batch: int, classes: int, tuned: bool = False) -> Pair:
    """Make both steps of a method in float32, ours on stock towers too, from copies of one model."""
    stock = CLIPModel(copy.deepcopy(model.clip), model.tokenizer, model.spec, fast=False)
    recipe = published_recipe(method, batch=batch, options=OPTIONS.get(method), precision="float32")
    ours = OurStep(made_up_trainer(recipe, stock, classes=classes))
    theirs = STEPS[method](
        copy.deepcopy(model.clip),
        model.tokenize([fill_templates(name, [TEMPLATE])[0] for name in class_names(classes)]),
        model.spec.preprocessing,
        torch.stack([sample.pixels for sample in ours.samples]),
        torch.tensor([sample.label for sample in ours.samples]),
        tuned=tuned,
    )
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for own, other in zip(stock.visual.parameters(), theirs.clip.visual.parameters(), strict=True):
            noise = MOVED * torch.randn(own.shape, generator=random)
            own.add_(noise)
            other.add_(noise)
    return Pair(ours, theirs)


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
