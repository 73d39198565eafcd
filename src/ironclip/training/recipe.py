"""Recipes: what to tune, on what, against which adversary, how. YAML in, checked dataclasses out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
import torch
from pydantic import ConfigDict, Field

from ironclip.attacks.base import ATTACKS, Attack
from ironclip.attacks.objectives import CLASSIFICATION_LOSSES
from ironclip.attacks.text.base import TEXT_ATTACKS, TextAttack
from ironclip.attacks.threat_model import ThreatModel, parse_eps
from ironclip.data.classes import fill_templates
from ironclip.errors import ConfigError, IronClipError, did_you_mean
from ironclip.methods.base import METHODS, Method
from ironclip.registry import Registry, build, explain
from ironclip.training.recipe_file import known_keys, read_recipe_file

T = TypeVar("T")

_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


class DataSection(pydantic.BaseModel):
    """What to tune on.

    Attributes:
        train: Data source, such as `wds:{data}/tiny_imagenet?split=train`; `{data}` is the data root.
        templates: Prompt templates with one `{}` each; the source's own where absent.
        class_names: Words for the labels; the source's own where absent.
        classes: "all" that the source names, or only those "present" among its labels (a train split without its
            unseen classes).
        limit: Take so many samples, by hash of their key.
        shots: Of what is not held out, train on so many samples a class, drawn from the seed (few-shot tuning).
        hold_out: So many training samples are kept for validation and never trained on, by hash of their key.
    """

    model_config = _STRICT
    train: str
    templates: list[str] | None = None
    class_names: list[str] | None = None
    classes: Literal["all", "present"] = "all"
    limit: Count | None = None
    shots: Count | None = None
    hold_out: Annotated[int, Field(ge=0)] = 500


class OptimisationSection(pydantic.BaseModel):
    """How to minimise.

    Attributes:
        optimiser: "sgd", "adam" (weight decay as an L2 term) or "adamw" (decoupled).
        lr: Learning rate after warm-up.
        momentum: Of SGD.
        betas: Of Adam and AdamW.
        weight_decay: Applied to every tuned parameter.
        schedule: "cosine" to 0, or "constant".
        warmup_steps: Steps before the schedule begins.
        warmup: "linear" (step t runs at (t + 1) / W of lr) or "constant" (at `warmup_lr`).
        warmup_lr: For constant warm-up.
        epochs: Passes over the data; or
        steps: optimiser steps.
        batch_size: Samples an optimiser step.
        accumulate: In how many parts a batch passes through the model.
        clip_norm: Largest gradient norm.
        precision: "bf16" (float32 masters, bfloat16 passes) or "float32".
        checkpoint_activations: Compute activations again in the backward pass instead of keeping them: the same
            result in more time and less memory.
    """

    model_config = _STRICT
    optimiser: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0)]
    momentum: Share = 0.9
    betas: tuple[Share, Share] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    warmup: Literal["linear", "constant"] = "linear"
    warmup_lr: Annotated[float, Field(gt=0)] | None = None
    epochs: Count | None = None
    steps: Count | None = None
    batch_size: Count = 256
    accumulate: Count = 1
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    precision: Literal["bf16", "float32"] = "bf16"
    checkpoint_activations: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Of the passes through the model."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @pydantic.field_validator("betas", mode="before")
    @classmethod
    def _list_to_tuple(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @pydantic.model_validator(mode="after")
    def _one_length(self) -> OptimisationSection:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"epochs is {self.epochs} and steps is {self.steps}; give epochs or steps, one of them")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide into accumulate {self.accumulate} equal parts"
            )
        if (self.warmup == "constant") != (self.warmup_lr is not None):
            raise ValueError(
                f"warmup_lr belongs to warmup: constant, which needs it, and is {self.warmup_lr} with {self.warmup}"
            )
        return self


class ValidationSection(pydantic.BaseModel):
    """Validation on the held-out part of the training data.

    Attributes:
        every: Steps between validations; one is always run at the end.
        samples: How many of the held-out samples a validation in between uses; the last one uses all, and with
            `select: best` every one does, since they are compared.
        attack: The attack, by name with settings; PGD-20 unless given.
    """

    model_config = _STRICT
    every: Count = 100
    samples: Count = 256
    attack: dict[str, Any] = Field(default_factory=lambda: {"name": "pgd", "steps": 20})


class CheckpointSection(pydantic.BaseModel):
    """When to write the resume state: every so many steps, at the end, and on SIGTERM."""

    model_config = _STRICT
    every: Count = 100


class SweepSection(pydantic.BaseModel):
    """Learning rates to choose from, each tried in a short run and judged on the held-out part of the training data.

    Attributes:
        lr: The candidates; `optimisation.lr` is replaced by the best of them.
        steps: Optimiser steps of a trial, the schedule shrunk to them.
    """

    model_config = _STRICT
    lr: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2)]
    steps: Count


class Recipe(pydantic.BaseModel):
    """One training run, whole.

    Attributes:
        title: One line for people.
        method: `{name: tecoa, …settings}`.
        model: Model source; where tuning begins, and the teacher.
        data: What to tune on.
        threat: The training adversary's game: `{norm: linf, eps: 2/255}`.
        attack: The training attack: `{name: pgd_m, steps: 3, step_size: 1/255}`.
        text_attack: The training attack on texts: `{name: leaf, edits: 1, candidates: 50}`; the method's own where
            absent. Only for methods that attack texts.
        optimisation: How to minimise.
        validation: On the held-out part.
        checkpoint: When to save.
        sweep: Learning rates to choose from before the run.
        select: "last", or "best" by robust validation.
        seed: Of order, starts and everything else that is drawn.
    """

    model_config = _STRICT
    title: str = ""
    method: dict[str, Any]
    model: str
    data: DataSection
    threat: dict[str, Any] = Field(default_factory=dict)
    attack: dict[str, Any] = Field(default_factory=lambda: {"name": "pgd_m"})
    text_attack: dict[str, Any] | None = None
    optimisation: OptimisationSection
    validation: ValidationSection = Field(default_factory=ValidationSection)
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection)
    sweep: SweepSection | None = None
    select: Literal["last", "best"] = "last"
    seed: int = 0

    @pydantic.model_validator(mode="after")
    def _something_to_select_by(self) -> Recipe:
        if self.select == "best" and not self.data.hold_out:
            raise ValueError("select: best needs held-out samples to judge by, and data.hold_out is 0")
        return self

    def resolved(self) -> dict[str, Any]:
        """Return everything that decides the result, with the defaults of method, attacks and threat written out.

        Two recipes that say the same in other words are equal here; title and rhythm of checkpoints are left out.
        """
        threat = dataclasses.asdict(self.build_threat()) | {"eps": str(parse_eps(self.build_threat().eps, "l2"))}
        text = self.build_text_attack()
        # Only where there is one, so that the keys of runs without texts stay what they were.
        texts = {} if text is None else {"text_attack": {"name": text.name, **_settings(text)}}
        unset = {"shots"} if self.data.shots is None else set()  # likewise
        left_out: dict[str, Any] = {
            "title": True,
            "checkpoint": True,
            "text_attack": True,
            "data": unset,
            "optimisation": {"checkpoint_activations"},  # of time and memory, not of the result
        }
        return self.model_dump(mode="json", exclude=left_out) | {
            **texts,
            "method": {"name": self.build_method().name, **_settings(self.build_method())},
            "attack": {"name": self.build_attack().name, **_settings(self.build_attack())},
            "threat": threat,
            "validation": self.validation.model_dump(mode="json", exclude={"attack"})
            | {"attack": {"name": self.build_validation_attack().name, **_settings(self.build_validation_attack())}},
        }

    def build_method(self) -> Method:
        """Return the method with its settings."""
        return _named(self.method, "method", METHODS)

    def build_attack(self) -> Attack:
        """Return the training attack with its settings."""
        return _named(self.attack, "attack", ATTACKS)

    def build_text_attack(self) -> TextAttack | None:
        """Return the training attack on texts: the recipe's, or the method's own; None where it attacks none.

        Raises:
            ConfigError: The recipe gives one to a method that attacks no texts.
        """
        method = self.build_method()
        if method.text_attack is None:
            if self.text_attack is not None:
                raise ConfigError(
                    f'text_attack: method "{method.name}" attacks no texts.', "Leave it out, or use leaf or mmcoa."
                )
            return None
        return _named(
            dict(method.text_attack if self.text_attack is None else self.text_attack), "text_attack", TEXT_ATTACKS
        )

    def build_validation_attack(self) -> Attack:
        """Return the attack of the validation."""
        return _named(self.validation.attack, "validation.attack", ATTACKS)

    def build_threat(self) -> ThreatModel:
        """Return the training adversary's game."""
        return build(ThreatModel, self.threat, where="threat")


def _settings(built: Any) -> dict[str, Any]:
    return dataclasses.asdict(built)  # every method and attack is a dataclass


def _named(section: dict[str, Any], where: str, registry: Registry[T]) -> T:
    if not isinstance(section.get("name"), str):
        raise ConfigError(f'{where}: the key "name" is missing.', f"Known {where}s: {', '.join(registry.names())}.")
    return registry.create(section["name"], {k: v for k, v in section.items() if k != "name"}, where=where)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe, or the `run.json` of a run, which repeats it.

    Args:
        path: YAML file, or a `run.json`.
        overrides: Changes such as `optimisation.lr=1e-4`; values are read as YAML.

    Raises:
        ConfigError: With all problems of the file at once: unknown keys (near ones shown), wrong types, unknown
            method or attack, a `python:` model (code is run from the command line only).
    """
    return check_recipe(read_recipe_file(path, overrides))


def check_recipe(content: dict[str, Any]) -> Recipe:
    """Check the content of a recipe; raises as `load_recipe`."""
    if "method" not in content and (other := content.keys() & {"architecture", "tower"}):
        raise ConfigError(f'a recipe with "{min(other)}" is of pre-training.', "Run it with: ironclip pretrain FILE")
    known, problems = known_keys(content, Recipe)
    recipe: Recipe | None = None
    try:
        recipe = Recipe.model_validate(known)
    except pydantic.ValidationError as error:
        problems.append(explain(error, "recipe"))
    if recipe is not None:
        for check in (
            recipe.build_method,
            recipe.build_threat,
            recipe.build_attack,
            recipe.build_text_attack,
            recipe.build_validation_attack,
            partial(_check_attacks, recipe),
            partial(_check_data, recipe),
        ):
            try:
                check()
            except IronClipError as error:
                if str(error) not in problems:
                    problems.append(str(error))
        if recipe.model.startswith("python:"):
            problems.append(f"model: {recipe.model} would run code, which a recipe may not.")
    if recipe is None or problems:
        raise ConfigError(
            "\n".join(problems), 'Mend the recipe; "ironclip validate FILE" checks it without running it.'
        )
    return recipe


def _check_attacks(recipe: Recipe) -> None:
    """Refuse attacks and rules that no training can run, before it begins."""
    threat, validation = recipe.build_threat(), recipe.build_validation_attack()
    for attack in (recipe.build_attack(), validation):
        attack.check(threat)
    if validation.loss not in CLASSIFICATION_LOSSES:
        near = did_you_mean(validation.loss, CLASSIFICATION_LOSSES)
        raise ConfigError(
            f'validation.attack: unknown loss "{validation.loss}".{near}',
            f"Known losses: {', '.join(CLASSIFICATION_LOSSES)}.",
        )
    if threat.integer or threat.goal != "untargeted":
        rule = "threat.integer: true" if threat.integer else f"threat.goal: {threat.goal}"
        raise ConfigError(f"{rule} is a rule of evaluations, which training does not follow.", "Leave it out.")


def _check_data(recipe: Recipe) -> None:
    """Refuse templates without place, and a warm-up that never ends."""
    if recipe.data.templates is not None:
        fill_templates("class", recipe.data.templates)
    settings = recipe.optimisation
    if settings.steps is not None and settings.warmup_steps >= settings.steps:
        raise ConfigError(
            f"optimisation.warmup_steps is {settings.warmup_steps}, of {settings.steps} steps in all.",
            "Warm up for fewer steps than the run has.",
        )
