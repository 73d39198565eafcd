"""Recipes of a small vision-language model: what `recipes/vlm/*.yaml` may say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import ConfigDict, Field

from ironclip.errors import ConfigError
from ironclip.models.tiny_vlm import DecoderSizes
from ironclip.registry import explain
from ironclip.training.recipe import Count, OptimisationSection
from ironclip.training.recipe_file import known_keys, read_recipe_file

EXAMPLE = "recipes/vlm/tiny-vlm.yaml"
"""The recipe of the model that comes with IronCLIP."""

_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class SourceSection(pydantic.BaseModel):
    """One source of images with what is said of them.

    Attributes:
        source: A data source with captions; `{data}` stands for the data root.
        per_batch: Images of it in each batch.
        questions: Share of its images that are asked one of the questions of `shapes` instead of for a caption; for
            `bundled:shapes` only.
    """

    model_config = _STRICT
    source: str
    per_batch: Count
    questions: Annotated[float, Field(ge=0, le=1)] = 0.0

    @pydantic.model_validator(mode="after")
    def _questions_of_shapes(self) -> SourceSection:
        if self.questions and not self.source.startswith("bundled:shapes"):
            raise ValueError("questions are asked of bundled:shapes only; set 0")
        return self


class VlmRecipe(pydantic.BaseModel):
    """One training, whole.

    Attributes:
        title: One line for people.
        tower: Source of the CLIP whose tower is read, and stays as it is.
        decoder: Sizes of what is trained.
        rarest: A word of the vocabulary occurs at least so often.
        sources: By name; the sum of their `per_batch` is the batch.
        steps: Optimiser steps (AdamW, linear warm-up, then cosine to 0).
        lr: Learning rate after warm-up.
        warmup_steps: Steps before the schedule begins.
        weight_decay: Decoupled.
        clip_norm: Largest norm of a gradient.
        precision: "bf16" (float32 masters, bfloat16 passes) or "float32".
        blind: Show a gray image in place of each: the twin that tells how far words alone lead.
        checkpoint_every: Steps between checkpoints.
        seed: Of everything that is drawn.
    """

    # Not strict: the dataclass comes as a mapping.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    title: str = ""
    tower: str = "tiny"
    decoder: DecoderSizes = DecoderSizes()
    rarest: Count = 3
    sources: dict[str, SourceSection]
    steps: Count
    lr: Annotated[float, Field(gt=0)] = 1e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 200
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["bf16", "float32"] = "bf16"
    blind: bool = False
    checkpoint_every: Count = 200
    seed: int = 0

    @pydantic.model_validator(mode="after")
    def _fits(self) -> VlmRecipe:
        if not self.sources:
            raise ValueError("sources is empty; name at least one")
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps is {self.warmup_steps}, of {self.steps} steps in all")
        return self

    def optimisation(self) -> OptimisationSection:
        """Return the part that says how to minimise, as training knows it."""
        return OptimisationSection(
            lr=self.lr,
            weight_decay=self.weight_decay,
            warmup_steps=self.warmup_steps,
            steps=self.steps,
            batch_size=sum(source.per_batch for source in self.sources.values()),
            clip_norm=self.clip_norm,
            precision=self.precision,
        )


def load_vlm_recipe(path: str | Path, overrides: Sequence[str] = ()) -> VlmRecipe:
    """Read and check a recipe; errors as those of `ironclip train`.

    Raises:
        ConfigError: With all problems of the file at once.
    """
    known, problems = known_keys(read_recipe_file(path, overrides), VlmRecipe)
    try:
        recipe = VlmRecipe.model_validate(known)
    except pydantic.ValidationError as error:
        problems.append(explain(error, "recipe"))
    if problems:
        raise ConfigError("\n".join(problems), f"Mend the recipe; {EXAMPLE} is one that runs.")
    return recipe
