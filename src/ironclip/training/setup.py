"""From a recipe to a trainer: data, held-out part, prompts, model, teacher, optimiser."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ironclip.data.classes import check_class_names, colliding_names
from ironclip.data.contract import Dataset
from ironclip.data.images import stack_images
from ironclip.data.order import epoch_order, few_shot, hold_out, keep_labels, limit, read_batches
from ironclip.data.sources import open_dataset
from ironclip.errors import ConfigError, DataError
from ironclip.methods.base import Method, Pass, Teacher
from ironclip.models.clip import CLIPModel
from ironclip.models.kernels import choose_kernels
from ironclip.models.sources import load_model
from ironclip.models.tuning import tuned_parameters
from ironclip.training.optimisation import build_optimiser
from ironclip.training.recipe import Recipe
from ironclip.training.teacher_cache import TeacherCache, open_teacher_cache
from ironclip.training.trainer import Trainer
from ironclip.training.validation import HeldOut

logger = logging.getLogger(__name__)


def prepare(
    recipe: Recipe,
    *,
    device: str,
    data_root: str,
    strict: bool,
    teacher_cache: Path | None = None,
    fast: bool = True,
) -> Trainer:
    """Open data and model and build everything that a run needs; arguments as of `engine.train`.

    Raises:
        ConfigError: The method reads other samples' terms (`across_batch`) and the recipe splits the batch; or there
            is a teacher cache for a method that would not read it.
        DataError: No data, no labels where the method needs them.
    """
    method = recipe.build_method()
    if method.across_batch and recipe.optimisation.accumulate > 1:
        raise ConfigError(
            f'method "{method.name}" compares the samples of a batch, which accumulate: '
            f"{recipe.optimisation.accumulate} would cut apart.",
            "Set optimisation.accumulate to 1.",
        )
    data: Dataset = open_dataset(recipe.data.train.replace("{data}", data_root), strict=strict)
    names = recipe.data.class_names or data.class_names
    if names and data.labels is not None:
        check_class_names(names, data.labels)
    if recipe.data.classes == "present" and data.labels is not None:
        present = sorted(set(data.labels))
        data = keep_labels(data, present, relabel=True)
        names = names and [names[label] for label in present]
    if recipe.data.limit is not None:
        data = limit(data, recipe.data.limit)
    model = load_model(recipe.model, device=device, fast=fast)
    model.spec = replace(model.spec, preprocessing=method.preprocessing(model.spec.preprocessing))
    choose_kernels(model, recipe.optimisation.batch_size // recipe.optimisation.accumulate, recipe.optimisation.dtype)
    # The tokenizer is shared: it has no state, and copying it takes longer than the rest.
    teacher = Teacher(copy.deepcopy(model, {id(model.tokenizer): model.tokenizer}))
    prompts = _prompts(recipe, method, data, names)
    held_out: HeldOut | None = None
    unreadable: dict[str, str] = {}
    if recipe.data.hold_out:
        data, kept = hold_out(data, recipe.data.hold_out)
        held_out, unreadable = _read_held_out(kept, teacher, strict, labelled=prompts is not None)
        if recipe.build_threat().acting == "model_input":
            held_out = replace(held_out, pixels=model.spec.preprocessing.resize(held_out.pixels))
    if recipe.data.shots is not None:
        data = few_shot(data, recipe.data.shots, recipe.seed)
    trainer = assemble(recipe, model, teacher, data, prompts, held_out=held_out, unreadable=unreadable)
    if teacher_cache is not None:
        teacher.known = _open_cache(teacher_cache, trainer, strict=strict)
    return trainer


def assemble(
    recipe: Recipe,
    model: CLIPModel,
    teacher: Teacher,
    data: Dataset,
    prompts: tuple[Sequence[str], Sequence[str]] | None,
    *,
    held_out: HeldOut | None = None,
    unreadable: Mapping[str, str] | None = None,
) -> Trainer:
    """Put what the method tunes into the student, free it alone, and build the trainer; arguments as of `Trainer`."""
    method = recipe.build_method()
    method.attach(model, () if prompts is None else prompts[1], recipe.seed)
    if recipe.optimisation.checkpoint_activations:
        model.checkpointing = True
    model.requires_grad_(False)
    parameters = tuned_parameters(model, method.trains)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    return Trainer(
        recipe=recipe,
        method=method,
        attack=recipe.build_attack(),
        model=model,
        teacher=teacher,
        data=data,
        held_out=held_out,
        prompts=prompts,
        parameters=parameters,
        optimiser=build_optimiser(parameters.values(), recipe.optimisation),
        unreadable=dict(unreadable or {}),
    )


def _open_cache(folder: Path, trainer: Trainer, *, strict: bool) -> TeacherCache:
    needs = trainer.method.needs
    if Pass.TEACHER_CLEAN not in needs or Pass.TEACHER_CLEAN_PATCHES in needs:
        raise ConfigError(
            f'method "{trainer.method.name}" would not read a teacher cache: it holds embeddings of clean images only.',
            "Leave the teacher cache out.",
        )
    return open_teacher_cache(
        folder,
        trainer.teacher.model,
        trainer.data,
        acting=trainer.acting,
        acting_at=trainer.recipe.build_threat().acting,
        precision=trainer.precision,
        strict=strict,
    )


def _prompts(
    recipe: Recipe, method: Method, data: Dataset, names: Sequence[str] | None
) -> tuple[Sequence[str], Sequence[str]] | None:
    """Return class names and templates: the recipe's, or those of the source; None where there is no need."""
    templates = recipe.data.templates or data.templates
    if data.labels is not None and names and templates:
        for name, labels in colliding_names(names):
            logger.warning('%s: the classes %s share the name "%s".', data.source, labels, name)
        return names, templates
    if method.reads_classes:
        missing = "labels" if data.labels is None else "class names" if not names else "templates"
        raise DataError(
            f'method "{method.name}" compares images with class prompts, but {data.source} has no {missing}.',
            "Give data.class_names and data.templates in the recipe, or use a method without labels (fare).",
        )
    return None


def _read_held_out(kept: Dataset, teacher: Teacher, strict: bool, *, labelled: bool) -> tuple[HeldOut, dict[str, str]]:
    """Read the held-out images once, in the order of a hash of their keys, with the teacher's embedding.

    Returns:
        The readable ones, and key and reason of the others.

    Raises:
        DataError: None of them can be read, or their sizes differ.
    """
    unreadable: dict[str, str] = {}
    order = epoch_order(kept.keys, 0, -1)
    samples = [s for batch in read_batches(kept, order, 64, strict=strict, unreadable=unreadable) for s in batch]
    if not samples:
        raise DataError(f"none of the {len(order)} held-out samples of {kept.source} can be read.", "Check the data.")
    device = teacher.model.device
    pixels = stack_images([sample.pixels for sample in samples], kept.source).to(device)
    labels = [sample.label for sample in samples]
    with torch.no_grad():
        embedding = torch.cat([teacher.model.embed_image(part) for part in pixels.split(64)])
    keys = [sample.key for sample in samples]
    return HeldOut(keys, pixels, torch.tensor(labels, device=device) if labelled else None, embedding), unreadable
