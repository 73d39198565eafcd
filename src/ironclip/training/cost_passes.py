"""Which passes a recipe's step consists of, found by rehearsing it: the real trainer, on a model small enough to wait.

Methods and attacks say what they do by doing it. So a step of the recipe's own method, attack and tuned parts runs on
two made-up samples and narrow random towers with the real number of tokens, and every pass through a tower is noted:
how many rows, what was differentiated, in which precision. `training.cost` then gives each its price at real sizes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ironclip.data.contract import Sample
from ironclip.methods.base import Method, Teacher
from ironclip.models.clip import CLIPModel
from ironclip.models.fast_text import make_room, passes
from ironclip.models.tuning import tuned_parameters
from ironclip.models.zero_shot import encode_classes
from ironclip.training.cost_models import small_model
from ironclip.training.cost_towers import Gradients
from ironclip.training.optimisation import build_optimiser
from ironclip.training.recipe import Recipe
from ironclip.training.trainer import Trainer
from ironclip.training.validation import HeldOut

SAMPLES = 2
HELD_OUT = 16
"""Of a validation, whose attacks run in parts of so many rows."""

NAMES = ("golden retriever", "fire truck", "sunflower")
TEMPLATE = "a photo of a {}."
CAPTION = "two children play with a red ball in front of an old house"
"""Texts of the made-up samples: of ordinary length, which text passes hang on."""

Part = Literal["attack", "before the attack", "loss", "teacher", "texts of the attack", "classes"]


@dataclass(frozen=True)
class Pass:
    """A pass through a tower.

    Attributes:
        part: What of a step it belongs to.
        tower: Which.
        gradients: What is differentiated.
        tokens: Of a text; of an image, the prompts beside its own tokens.
        patches: The patches are read too.
        beside: Adapters stand beside the weights.
        bits: Of a number, 16, 32 or 64.
    """

    part: Part
    tower: Literal["image", "text"]
    gradients: Gradients
    tokens: int
    patches: bool
    beside: bool
    bits: int


Passes = Mapping[Pass, float]
"""Rows of each pass: a sample of the batch, or for the part "classes" a class."""


@dataclass(frozen=True)
class Rehearsal:
    """What a recipe's run consists of.

    Attributes:
        step: Of an optimiser step.
        once: Of the run, before its first step.
        validation: Of a validation, a held-out image.
    """

    step: Passes
    once: Passes
    validation: Passes


class _Noted(CLIPModel):
    """A model that notes its passes.

    Attributes:
        teacher: Whether it is the teacher.
        noted: Rows of each pass so far.
    """

    teacher = False
    noted: Counter[Pass]

    def embed_image(self, pixels: Tensor) -> Tensor:
        """Embed and note."""
        embedding = super().embed_image(pixels)
        self._note_images(pixels, embedding, patches=False)
        return embedding

    def embed_with_patches(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Embed and note."""
        embedding, patches = super().embed_with_patches(pixels)
        self._note_images(pixels, embedding, patches=True)
        return embedding, patches

    def embed_text(self, texts: Tensor | Sequence[str]) -> Tensor:
        """Embed and note."""
        embedding = super().embed_text(texts)
        part: Part = "teacher" if self.teacher else "loss" if self.training else "texts of the attack"
        self._note_texts(texts, embedding, part)
        return embedding

    def text_features(self, texts: Tensor | Sequence[str]) -> Tensor:
        """Embed class prompts, which alone are read as unit rows, and note."""
        embedding = super().embed_text(texts)
        self._note_texts(texts, embedding, "classes")
        return torch.nn.functional.normalize(embedding, dim=-1)

    def _note_images(self, pixels: Tensor, embedding: Tensor, *, patches: bool) -> None:
        layers = () if self.prompts is None else self.prompts.image_layers()
        frame = None if self.prompts is None else self.prompts.frame
        adapters = None if self.adapters is None else self.adapters.image
        framed = frame is not None and any(parameter.requires_grad for parameter in frame.parameters())
        gradients = self._gradients(self.visual, embedding, adapters, pixels=pixels.requires_grad or framed)
        part: Part = "before the attack"
        if self.teacher:
            part = "teacher"
        elif self.training:
            part = "loss"
        elif gradients is Gradients.PIXELS:
            part = "attack"
        beside = adapters is not None and adapters.gates is not None
        prompts = len(layers[0]) if layers else 0
        seen = Pass(part, "image", gradients, prompts, patches, beside, self._bits)
        self._note(seen, len(pixels), embedding)

    def _note_texts(self, texts: Tensor | Sequence[str], embedding: Tensor, part: Part) -> None:
        ids = texts if isinstance(texts, Tensor) else self.tokenize(texts)
        words = () if self.prompts is None else self.prompts.text_layers()
        ends = make_room(ids, len(words[0]) if words else 0).argmax(dim=1)
        adapters = None if self.adapters is None else self.adapters.text
        tower = next(iter(self.text_parameters()))
        gradients = self._gradients(tower, embedding, adapters, pixels=False)
        beside = adapters is not None and adapters.gates is not None
        for length, rows in passes(ends, ids.shape[1]):
            self._note(Pass(part, "text", gradients, length, False, beside, self._bits), len(rows), embedding)

    def _gradients(self, tower: Any, embedding: Tensor, adapters: Any, *, pixels: bool) -> Gradients:
        if not embedding.requires_grad:
            return Gradients.NONE
        if pixels:
            return Gradients.PIXELS
        weights = [tower] if isinstance(tower, Tensor) else tower.parameters()
        if any(weight.requires_grad for weight in weights):
            return Gradients.WEIGHTS
        return Gradients.INSIDE if adapters is None else Gradients.ADAPTERS

    @property
    def _bits(self) -> int:
        return torch.finfo(self.compute_dtype).bits

    def _note(self, seen: Pass, rows: int, embedding: Tensor) -> None:
        """Note a pass, and its gradients once they are taken: what no loss reads is never differentiated."""
        forward = replace(seen, gradients=Gradients.NONE)
        self.noted[forward] += rows

        def taken(_: Tensor) -> None:
            self.noted += Counter({seen: rows})
            self.noted -= Counter({forward: rows})

        if embedding.requires_grad:
            embedding.register_hook(taken)


@dataclass
class _MadeUp:
    """Two samples, with a caption where the recipe names no classes."""

    source: str
    templates: Sequence[str] | None
    class_names: Sequence[str] | None
    samples: list[Sample]
    labels: Sequence[int] | None
    fingerprint: str = ""
    problems: tuple[str, ...] = ()
    keys: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        self.keys = [sample.key for sample in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> Sample:
        return self.samples[position]


def rehearse(recipe: Recipe, architecture: Mapping[str, Any]) -> Rehearsal:
    """Run two steps and a validation of a recipe in small, and note their passes.

    Args:
        recipe: The recipe.
        architecture: open_clip's configuration of its model.
    """
    method = recipe.build_method()
    trainer, models = _trainer(_in_small(recipe), method, architecture)
    samples = [trainer.data[position] for position in range(SAMPLES)]
    trainer.step(samples, 0)
    classes = len(trainer.data.class_names or NAMES)
    first = _taken(models, classes)
    trainer.step(samples, 0)
    step = _taken(models, classes)
    once = {seen: rows for seen, rows in first.items() if seen.part == "classes" and seen not in step}
    trainer.validate()
    held_out = {seen: rows for seen, rows in _taken(models, classes).items() if seen.part != "classes"}
    validation = {seen: rows * SAMPLES / HELD_OUT for seen, rows in held_out.items()}
    return Rehearsal(step, once, validation)


def _in_small(recipe: Recipe) -> Recipe:
    """Return the recipe for two samples, with a step and a ball so small that nothing changes and nothing breaks.

    Of text attacks that ask a language model only the search is rehearsed, on the bundled synonyms.
    """
    optimisation = recipe.optimisation.model_copy(
        update={"batch_size": SAMPLES, "accumulate": 1, "lr": 1e-12, "warmup_steps": 0, "steps": 100, "epochs": None}
    )
    text = recipe.text_attack
    if text is not None and "language_model" in text:
        text = {"name": "synonyms"} | {key: value for key, value in text.items() if key == "words"}
    threat = recipe.threat | {"eps": 1e-6}
    return recipe.model_copy(update={"optimisation": optimisation, "text_attack": text, "threat": threat})


def _trainer(recipe: Recipe, method: Method, architecture: Mapping[str, Any]) -> tuple[Trainer, tuple[_Noted, _Noted]]:
    clip, tokenizer, spec = small_model(architecture)
    teacher_clip, _, _ = small_model(architecture)
    spec = replace(spec, preprocessing=method.preprocessing(spec.preprocessing))
    model, teacher = _Noted(clip, tokenizer, spec), _Noted(teacher_clip, tokenizer, spec)
    names, templates = recipe.data.class_names or NAMES, recipe.data.templates or [TEMPLATE]
    captions = () if method.reads_classes or recipe.data.class_names or recipe.data.templates else (CAPTION,)
    teacher.teacher = True
    method.attach(model, templates, recipe.seed)
    model.requires_grad_(False)
    parameters = tuned_parameters(model, method.trains)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    model.noted, teacher.noted = Counter(), Counter()
    side = model.input_resolution
    pixels = torch.rand(HELD_OUT, 3, side, side, generator=torch.Generator().manual_seed(0))
    samples = [Sample(str(row), pixels[row], row, captions) for row in range(SAMPLES)]
    trainer = Trainer(
        recipe=recipe,
        method=method,
        attack=recipe.build_attack(),
        model=model,
        teacher=Teacher(teacher),
        data=_MadeUp("a rehearsal", templates, names, samples, range(SAMPLES)),
        held_out=None,
        prompts=(names, templates),
        parameters=parameters,
        optimiser=build_optimiser(parameters.values(), recipe.optimisation),
    )
    with torch.no_grad():
        embedding = teacher.embed_image(pixels)
        # What the model itself says is right, so that no row is broken before the attack begins.
        labels = (model.image_features(pixels) @ encode_classes(model, names, templates).T).argmax(dim=1)
    keys = [str(row) for row in range(HELD_OUT)]
    trainer.held_out = HeldOut(keys, pixels, labels if method.reads_classes else None, embedding)
    model.noted, teacher.noted = Counter(), Counter()
    return trainer, (model, teacher)


def _taken(models: Sequence[_Noted], classes: int) -> dict[Pass, float]:
    """Return the rows a sample (a class, for class prompts) since the last time, and begin anew."""
    taken: Counter[Pass] = sum((model.noted for model in models), Counter())
    for model in models:
        model.noted = Counter()
    return {seen: rows / (classes if seen.part == "classes" else SAMPLES) for seen, rows in taken.items()}
