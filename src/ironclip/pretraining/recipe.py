"""Recipes of pre-training: what `recipes/pretrain/*.yaml` may say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import ConfigDict, Field

from ironclip.errors import ConfigError
from ironclip.pretraining.language import LanguageSettings
from ironclip.pretraining.targets import TargetSettings
from ironclip.registry import explain
from ironclip.training.recipe import Count
from ironclip.training.recipe_file import known_keys, read_recipe_file

EXAMPLE = "recipes/pretrain/tiny.yaml"
_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
Part = Annotated[float, Field(ge=0, le=1)]


class LanguageSection(pydantic.BaseModel):
    """What words the text tower learns, and where they should lie.

    Attributes:
        wordnet: Folder of a WordNet 3 database, `index.noun` in it; `{data}` stands for the data root, here and below.
        encoder: Folder of a sentence encoder in transformers' layout.
        clip_text: Folder of CLIP's own text embeddings; needed unless `targets.kind` is "sentence".
        targets: Which target, and how it is reduced.
        distillation: How the tower is trained.
    """

    # Not strict: dataclasses come as mappings.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    wordnet: str
    encoder: str
    clip_text: str | None = None
    targets: TargetSettings = TargetSettings()
    distillation: LanguageSettings = LanguageSettings()


class SourceSection(pydantic.BaseModel):
    """One source of images.

    Attributes:
        source: Data source; `{data}` stands for the data root.
        per_batch: Images of it in each batch.
        captions: Its images have captions instead of classes.
        templates: Prompts for its class names; the source's own unless given.
        synonyms: Folder with `classes.json`, for more names of the classes.
        zoom: Smallest side of a crop, as a share of the image's.
        flip: Mirror half of the images.
        colour: Largest relative change of brightness, contrast and saturation.
        mix: Share of the images that get a box of another pasted in; classes only.
        rivals: What a class is told from: "all" others, or those whose name is "one_word_apart". Where names combine
            words (red circle), every other rule teaches that combinations which are not shown do not exist.
        hold_out: So many images are kept back for validation.
        held_out_classes: So many classes are kept back, chosen by hash: recipes are compared by accuracy on them.
    """

    model_config = _STRICT
    source: str
    per_batch: Count
    captions: bool = False
    templates: list[str] | None = None
    synonyms: str | None = None
    zoom: Annotated[float, Field(gt=0, le=1)] = 0.5
    flip: bool = True
    colour: Annotated[float, Field(ge=0, lt=1)] = 0.3
    mix: Part = 0.0
    rivals: Literal["all", "one_word_apart"] = "all"
    hold_out: Annotated[int, Field(ge=0)] = 0
    held_out_classes: Annotated[int, Field(ge=0)] = 0

    @pydantic.model_validator(mode="after")
    def _classes_or_captions(self) -> SourceSection:
        for_classes = ("mix", "hold_out", "held_out_classes", "templates", "synonyms", "rivals")
        given = [name for name in for_classes if self.captions and getattr(self, name) not in (None, 0, "all")]
        if given:
            raise ValueError(f"captions: true leaves no use for {given[0]}")
        return self


class ImagesSection(pydantic.BaseModel):
    """How the image tower learns.

    Attributes:
        sources: By name; the sum of their `per_batch` is the batch.
        steps: Optimiser steps.
        lr: Learning rate after warm-up, of AdamW and, scaled to the same size of update, of Muon.
        warmup_steps: Linear.
        decay: The last share of the steps in which the rate falls linearly to 0; before, it is constant, so that a run
            may be made longer as long as it has not begun to fall.
        weight_decay: Decoupled.
        optimiser: "muon" for the matrices of the blocks (AdamW for the rest), or "adamw" for all.
        patches: Share of the patches that an image shows until the rate falls; then all.
        captions_against: Texts that a caption is told from.
        ema: Decay of the running mean of the weights, which is the result.
        precision: "bf16" or "float32".
        checkpoint_every: Steps.
        validate_every: Steps.
    """

    model_config = _STRICT
    sources: dict[str, SourceSection]
    steps: Count
    lr: Annotated[float, Field(gt=0)] = 2e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 200
    decay: Annotated[float, Field(gt=0, le=1)] = 0.25
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    optimiser: Literal["muon", "adamw"] = "muon"
    patches: Annotated[float, Field(gt=0, le=1)] = 0.5
    captions_against: Count = 1024
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.998
    precision: Literal["bf16", "float32"] = "bf16"
    checkpoint_every: Count = 200
    validate_every: Count = 500

    @property
    def stable_steps(self) -> int:
        """Steps before the learning rate falls."""
        return self.steps - max(1, round(self.decay * self.steps))

    @pydantic.model_validator(mode="after")
    def _sources(self) -> ImagesSection:
        if not self.sources:
            raise ValueError("sources is empty; name at least one")
        if self.warmup_steps > self.stable_steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} reaches into the {self.steps - self.stable_steps} last")
        return self


class PretrainRecipe(pydantic.BaseModel):
    """One pre-training, whole.

    Attributes:
        title: One line for people.
        architecture: open_clip's configuration: embed_dim, vision_cfg, text_cfg.
        unseen: File of the classes that must never be met; `{data}` stands for the data root.
        language: The text tower, trained first.
        images: The image tower, trained against the frozen text tower.
        seed: Of everything that is drawn.
    """

    model_config = _STRICT
    title: str = ""
    architecture: dict[str, Any]
    unseen: str | None = None
    language: LanguageSection
    images: ImagesSection
    seed: int = 0


def load_pretrain_recipe(path: str | Path, overrides: Sequence[str] = ()) -> PretrainRecipe:
    """Read and check a recipe of pre-training; errors as those of `ironclip train`.

    Raises:
        ConfigError: With all problems of the file at once.
    """
    content = read_recipe_file(path, overrides)
    if "method" in content and "architecture" not in content:
        raise ConfigError(f'{path} is a recipe of training: it has a "method".', f"Run it with: ironclip train {path}")
    known, problems = known_keys(content, PretrainRecipe)
    try:
        recipe = PretrainRecipe.model_validate(known)
    except pydantic.ValidationError as error:
        problems.append(explain(error, "recipe"))
    if problems:
        raise ConfigError("\n".join(problems), f"Mend the recipe; {EXAMPLE} is one that runs.")
    return recipe
