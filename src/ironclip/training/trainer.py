"""Trainer: what one optimiser step is, for every method: adversaries, views, loss, gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from ironclip.attacks.base import Attack
from ironclip.attacks.objectives import Objective, is_correct
from ironclip.attacks.text.objectives import TextObjective
from ironclip.data.classes import fill_templates
from ironclip.data.contract import Dataset, Sample
from ironclip.data.images import stack_images
from ironclip.data.order import epoch_order, read_batches
from ironclip.errors import ConfigError, DataError
from ironclip.methods.base import Batch, ImageView, Inner, Method, Pass, Teacher, TextView, Views
from ironclip.models.clip import CLIPModel
from ironclip.models.tuning import Tunable
from ironclip.models.zero_shot import encode_classes
from ironclip.randomness import SampleRandom, rank_of
from ironclip.training.averaging import average_of, keep_average
from ironclip.training.checkpoint import Progress
from ironclip.training.optimisation import learning_rate
from ironclip.training.recipe import Recipe
from ironclip.training.validation import PART, HeldOut, Validation, validate

T = TypeVar("T")
Adversaries = Mapping[Literal["image", "text"], Inner]

TEXTS = frozenset({Pass.STUDENT_TEXT, Pass.STUDENT_TEXT_ADV, Pass.TEACHER_TEXT, Pass.TEACHER_TEXT_ADV})
"""The passes that read the batch's texts."""


@dataclass
class Trainer:
    """A run with everything that a step needs. Made by `setup.prepare`, driven by `engine.train`.

    Attributes:
        recipe: The run, whole.
        method: What is minimised.
        attack: The training attack.
        model: The student.
        teacher: The frozen original.
        data: The samples that are trained on.
        held_out: Those that are not, None where the recipe holds out none.
        prompts: Class names and templates, None where the method reads no classes and there are none.
        parameters: The tuned parameters by name.
        optimiser: Over these.
        class_weights: Of the prompts, once they are encoded, by their templates.
        teacher_class_weights: Likewise, of a teacher whose text tower is not the student's.
        progress: Where the run stands.
        unreadable: Held-out samples that could not be read, with the reason.
    """

    recipe: Recipe
    method: Method
    attack: Attack
    model: CLIPModel
    teacher: Teacher
    data: Dataset
    held_out: HeldOut | None
    prompts: tuple[Sequence[str], Sequence[str]] | None
    parameters: dict[str, nn.Parameter]
    optimiser: torch.optim.Optimizer
    class_weights: dict[tuple[str, ...], Tensor] = field(default_factory=dict)
    teacher_class_weights: Tensor | None = None
    progress: Progress = field(default_factory=Progress)
    unreadable: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.method.average:
            keep_average(self.optimiser, self.method.average)

    @property
    def precision(self) -> torch.dtype:
        """Of the passes through the model."""
        return self.recipe.optimisation.dtype

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one pass over the data; the last may be smaller."""
        return -(-len(self.data) // self.recipe.optimisation.batch_size)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        settings = self.recipe.optimisation
        return settings.steps if settings.steps is not None else (settings.epochs or 1) * self.steps_per_epoch

    def batches(self, strict: bool) -> Iterator[tuple[int, list[Sample]]]:
        """Yield (epoch, samples) from the current step on; a function of seed, epoch and keys."""
        size, per_epoch = self.recipe.optimisation.batch_size, self.steps_per_epoch
        first = self.progress.step
        for epoch in range(first // per_epoch, -(-self.steps // per_epoch)):
            order = epoch_order(self.data.keys, self.recipe.seed, epoch)
            begin = (first - epoch * per_epoch) * size if epoch == first // per_epoch else 0
            batches = read_batches(self.data, order[begin:], size, strict=strict, unreadable=self.progress.unreadable)
            for samples in batches:
                yield epoch, samples

    def step(self, samples: Sequence[Sample], epoch: int) -> dict[str, float]:
        """Do one optimiser step, and return what is logged of it.

        A step whose loss or gradient is not finite changes nothing and is counted.
        """
        settings, progress = self.recipe.optimisation, self.progress
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(progress.step, self.steps, settings)
        self.optimiser.zero_grad(set_to_none=True)
        logged: dict[str, float] = {"lr": self.optimiser.param_groups[0]["lr"], "loss": 0.0}
        for part in _split(samples, settings.accumulate):
            share = len(part) / len(samples)
            terms, watched = self._losses(self._batch(part, epoch), epoch)
            total = torch.stack(list(terms.values())).sum()
            (total * share).backward()
            for name, term in {**terms, "loss": total}.items():
                logged[name] = logged.get(name, 0.0) + float(term.detach()) * share
            for name, value in watched.items():
                logged[name] = logged.get(name, 0.0) + value * share
        # Without a bound it only measures: every gradient is multiplied by 1.
        norm = nn.utils.clip_grad_norm_(list(self.parameters.values()), settings.clip_norm or math.inf)
        logged["gradient_norm"] = float(norm)
        if torch.isfinite(norm) and math.isfinite(logged["loss"]):
            self.optimiser.step()
            progress.skipped_in_a_row = 0
        else:
            progress.skipped += 1
            progress.skipped_in_a_row += 1
        self.optimiser.zero_grad(set_to_none=True)
        progress.step += 1
        progress.images += len(samples)
        return logged

    def pass_over(self) -> dict[str, float]:
        """Count a step of which no sample could be read.

        Raises:
            DataError: Nor could any other.
        """
        lost = self.progress.unreadable
        if not self.progress.images and len(lost) == len(self.data):
            key, reason = next(iter(lost.items()))
            raise DataError(
                f"none of the {len(lost)} samples of {self.data.source} can be read; {key}: {reason}", "Check the data."
            )
        self.progress.step += 1
        self.progress.skipped += 1
        return {"loss": float("nan")}

    def _batch(self, samples: Sequence[Sample], epoch: int = 0) -> Batch:
        keys = [sample.key for sample in samples]
        labels = [sample.label for sample in samples if sample.label is not None]
        captions = [sample.captions for sample in samples]
        return Batch(
            keys=keys,
            pixels=self.acting(stack_images([s.pixels for s in samples], self.data.source)).to(self.model.device),
            labels=torch.tensor(labels, device=self.model.device) if len(labels) == len(samples) else None,
            captions=captions,
            # Encoded anew at every step, and with gradients, they are only for those who read them.
            class_weights=self._class_weights() if self._text_is_frozen or self.method.reads_classes else None,
            extra_class_weights=self._extra_class_weights(),
            texts=self._texts(keys, captions, labels, epoch),
            epoch=epoch,
        )

    def acting(self, pixels: Tensor) -> Tensor:
        """Return the images on which the adversary acts: as they are, or as the model's input."""
        if self.recipe.build_threat().acting == "native":
            return pixels
        return self.model.spec.preprocessing.resize(pixels)

    def _class_weights(self) -> Tensor | None:
        return None if self.prompts is None else self._encode(*self.prompts)

    def _extra_class_weights(self) -> dict[str, Tensor]:
        if self.prompts is None:
            return {}
        names, _ = self.prompts
        return {title: self._encode(names, templates) for title, templates in self.method.extra_templates.items()}

    def _encode(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Encode the classes: once a run while the text tower is frozen, else anew and with gradients."""
        if not self._text_is_frozen:
            return encode_classes(self.model, names, templates)
        key = tuple(templates)
        if key not in self.class_weights:
            with torch.no_grad():
                self.class_weights[key] = encode_classes(self.model, names, templates)
        return self.class_weights[key]

    @property
    def _text_is_frozen(self) -> bool:
        """Whether the student's texts stay what they were: its text tower is frozen, and reads nothing that is not."""
        if self.method.trains is Tunable.PROMPTS:
            return self.model.prompts is not None and not self.model.prompts.text_layers()
        return self.method.trains is Tunable.VISION

    def _losses(self, batch: Batch, epoch: int) -> tuple[Mapping[str, Tensor], dict[str, float]]:
        """Attack the batch, compute the passes that the method declared, and its loss; and what is logged beside it."""
        with self.model.computing(self.precision), self.teacher.model.computing(self.precision):
            watched = self.method.watch(batch, self.model, self.teacher)
            inner = self.method.adversaries(batch, self.model, self.teacher)
            scope = f"train|{epoch}" if self.method.attack_scope == "epoch" else "train"
            attacked = self._attacked(batch, inner, scope)
            attacked_texts = self._attacked_texts(batch, inner, scope)
            self.model.train()
            try:
                passes = self._passes(batch, attacked, attacked_texts)
            finally:
                self.model.eval()
            scale, resolution = self.model.logit_scale.detach(), self.model.input_resolution
            terms = self.method.loss(Views(self.method.name, batch, passes, scale, resolution))
        return terms, {**watched, **_accuracies(passes, batch, scale)}

    def _attacked(self, batch: Batch, inner: Adversaries, scope: str) -> Tensor | None:
        """Solve the inner problem over images; None where the method has none."""
        if "image" not in inner:
            return None
        objective = inner["image"].objective
        if not isinstance(objective, Objective):
            raise ConfigError(
                f'method "{self.method.name}" gives the image adversary an objective over texts.',
                'Return it as "text" from `adversaries`.',
            )
        random = SampleRandom(self.recipe.seed, batch.keys, scope)
        return self.attack.perturb(objective, batch.pixels, self.recipe.build_threat(), random)

    def _attacked_texts(self, batch: Batch, inner: Adversaries, scope: str) -> list[str] | None:
        """Solve the inner problem over texts; None where the method has none."""
        if "text" not in inner:
            return None
        objective, attack = inner["text"].objective, self.recipe.build_text_attack()
        if attack is None or not isinstance(objective, TextObjective):
            raise ConfigError(
                f'method "{self.method.name}" attacks texts, and no text attack is registered for its objective.',
                "Set `text_attack` of the method, and give its text adversary a TextObjective.",
            )
        return attack.perturb(objective, batch.texts, SampleRandom(self.recipe.seed, batch.keys, scope))

    def _passes(
        self, batch: Batch, attacked: Tensor | None, attacked_texts: Sequence[str] | None = None
    ) -> dict[Pass, object]:
        """Compute each declared pass once."""
        passes = self._student_passes(batch, attacked) | self._teacher_passes(batch, attacked)
        needs = self.method.needs
        if Pass.STUDENT_TEXT in needs:
            with self._dropping(batch, ["text"]):
                passes[Pass.STUDENT_TEXT] = TextView(self.model.embed_text(batch.texts))
        if Pass.TEACHER_TEXT in needs:
            passes[Pass.TEACHER_TEXT] = TextView(self.teacher.text_embedding(batch))
        for name, model in ((Pass.STUDENT_TEXT_ADV, self.model), (Pass.TEACHER_TEXT_ADV, self.teacher.model)):
            if name in needs:
                passes[name] = TextView(model.embed_text(_given(attacked_texts, self.method, name, "text")))
        return {name: value for name, value in passes.items() if name in needs}

    def _dropping(self, batch: Batch, views: Sequence[str]) -> AbstractContextManager[None]:
        """Let the student drop adapters in a pass of these views of the batch, one after the other."""
        keys = [f"{view}|{key}" for view in views for key in batch.keys]
        return self.model.dropping(SampleRandom(self.recipe.seed, keys, f"train|{batch.epoch}"))

    def _student_passes(self, batch: Batch, attacked: Tensor | None) -> dict[Pass, object]:
        """Pass clean and attacked images through the student in one batch, with their patches where any are read."""
        seen = self._seen_by("student", batch, attacked)
        if not seen:
            return {}
        passes: dict[Pass, object] = {}
        pixels = torch.cat([pixels for _, _, pixels in seen])
        with self._dropping(batch, [whole.value for whole, _, _ in seen]):
            if any(patches in self.method.needs for _, patches, _ in seen):
                embedding, tokens = self.model.embed_with_patches(pixels)
                passes |= {patches: part for (_, patches, _), part in zip(seen, tokens.split(len(batch)), strict=True)}
            else:
                embedding = self.model.embed_image(pixels)
        for (whole, _, _), part in zip(seen, embedding.split(len(batch)), strict=True):
            passes[whole] = ImageView(part, batch.class_weights)
        return passes

    @torch.no_grad()
    def _teacher_passes(self, batch: Batch, attacked: Tensor | None) -> dict[Pass, object]:
        """Pass images through the teacher; of the clean ones the embedding is there if the attack asked for it."""
        passes: dict[Pass, object] = {}
        for whole, patches, pixels in self._seen_by("teacher", batch, attacked):
            if patches in self.method.needs:
                embedding, passes[patches] = self.teacher.model.embed_with_patches(pixels)
            elif whole is Pass.TEACHER_CLEAN:
                embedding = self.teacher.embedding(batch)
            else:
                embedding = self.teacher.model.embed_image(pixels)
            if whole in self.method.needs:
                passes[whole] = ImageView(embedding, self._teacher_classes(batch))
        return passes

    def _seen_by(self, model: str, batch: Batch, attacked: Tensor | None) -> list[tuple[Pass, Pass, Tensor]]:
        """List the images that a model has to see: the pass of the whole image, that of its patches, the pixels."""
        needs, seen = self.method.needs, []
        for view, pixels in (("clean", batch.pixels), ("adv", attacked)):
            whole, patches = Pass(f"{model}.{view}"), Pass(f"{model}.{view}_patches")
            if needs & {whole, patches}:
                seen.append(
                    (whole, patches, _given(pixels, self.method, whole if whole in needs else patches, "image"))
                )
        return seen

    def _teacher_classes(self, batch: Batch) -> Tensor | None:
        """Return the teacher's class weights: the student's own while the text tower is frozen."""
        if self.prompts is None or self._text_is_frozen:
            return batch.class_weights
        if self.teacher_class_weights is None:
            self.teacher_class_weights = encode_classes(self.teacher.model, *self.prompts)
        return self.teacher_class_weights

    def _texts(
        self, keys: Sequence[str], captions: Sequence[tuple[str, ...]], labels: Sequence[int], epoch: int
    ) -> Sequence[str]:
        """Return one text a sample: its first caption, or the first prompt of its class; none if the method reads none.

        Args:
            keys: One a sample.
            captions: One tuple a sample.
            labels: One a sample, or none at all.
            epoch: Of the draw, for a method that draws the prompt.

        Raises:
            DataError: The method reads texts, and the data have none.
        """
        if not self.method.needs & TEXTS:
            return ()
        if all(captions):
            return [texts[0] for texts in captions]
        if self.prompts is None or len(labels) < len(captions):
            raise DataError(f'method "{self.method.name}" reads texts, but the data have none.', "Use captioned data.")
        names, templates = self.prompts
        if not self.method.draws_templates:
            return [fill_templates(names[label], templates)[0] for label in labels]
        drawn = [rank_of(self.recipe.seed, "template", epoch, key) % len(templates) for key in keys]
        return [fill_templates(names[label], templates)[row] for label, row in zip(labels, drawn, strict=True)]

    def validate(self, samples: int | None = None) -> Validation | None:
        """Run the validation on the first `samples` held-out images (all by default)."""
        if self.held_out is None:
            return None
        count = len(self.held_out.keys) if samples is None else samples
        with self.as_evaluated():
            with torch.no_grad():
                class_weights = self._class_weights()
            return validate(
                self.model,
                self.held_out.first(count),
                class_weights,
                attack=self.recipe.build_validation_attack(),
                train_attack=self._attack_held_out if self._adversarial else None,
                threat=self.recipe.build_threat(),
                seed=self.recipe.seed,
                precision=self.precision,
            )

    def evaluated(self) -> dict[str, Tensor]:
        """Return the tuned parameters as they are evaluated and saved; most methods': the very parameters."""
        averages = {name: average_of(self.optimiser, parameter) for name, parameter in self.parameters.items()}
        return dict(self.method.at_test(averages))

    @contextmanager
    def as_evaluated(self) -> Iterator[None]:
        """Put what is evaluated in place of the tuned parameters, and the parameters back afterwards."""
        values = self.evaluated()
        changed = {name: p for name, p in self.parameters.items() if values[name] is not p}
        kept = {name: parameter.detach().clone() for name, parameter in changed.items()}
        put(changed, values)
        try:
            yield
        finally:
            put(changed, kept)

    def _attack_held_out(self, held_out: HeldOut) -> Tensor:
        """Attack held-out images as training attacks its own: the method's inner problem, the attack's own choice."""
        found = []
        for rows in torch.arange(len(held_out.keys)).split(PART):
            labels = [] if held_out.labels is None else held_out.labels[rows].tolist()
            batch = Batch(
                keys=[held_out.keys[row] for row in rows.tolist()],
                pixels=held_out.pixels[rows],
                labels=None if held_out.labels is None else held_out.labels[rows],
                class_weights=self._class_weights(),
                texts=self._texts([held_out.keys[row] for row in rows.tolist()], [()] * len(rows), labels, 0),
            )
            with self.model.computing(self.precision), self.teacher.model.computing(self.precision):
                inner = self.method.adversaries(batch, self.model, self.teacher)
                attacked = self._attacked(batch, inner, "validation")
            found.append(_given(attacked, self.method, Pass.STUDENT_ADV, "image"))
        return torch.cat(found)

    @property
    def _adversarial(self) -> bool:
        return bool(self.method.needs & {Pass.STUDENT_ADV, Pass.STUDENT_ADV_PATCHES, Pass.TEACHER_ADV})


@torch.no_grad()
def put(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Copy values into the parameters of their names."""
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def _given(found: T | None, method: Method, name: Pass, kind: str) -> T:
    if found is None:
        raise ConfigError(
            f'method "{method.name}" needs Pass.{name.name}, but declares no {kind} adversary.',
            "Return an inner problem from `adversaries`, or drop the pass from `needs`.",
        )
    return found


def _accuracies(passes: Mapping[Pass, object], batch: Batch, logit_scale: Tensor) -> dict[str, float]:
    """Return the share of the batch that the student gets right, from passes that were computed anyway."""
    found = {}
    for name, title in ((Pass.STUDENT_CLEAN, "clean_accuracy"), (Pass.STUDENT_ADV, "attack_accuracy")):
        view = passes.get(name)
        if isinstance(view, ImageView) and batch.labels is not None and view.class_weights is not None:
            with torch.no_grad():
                found[title] = float(is_correct(logit_scale * view.similarity, batch.labels).float().mean())
    return found


def _split(samples: Sequence[Sample], parts: int) -> Iterator[Sequence[Sample]]:
    size = -(-len(samples) // parts)
    for start in range(0, len(samples), size):
        yield samples[start : start + size]
