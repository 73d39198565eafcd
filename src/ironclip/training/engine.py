"""The loop: batch, adversaries, views, loss, step. One for every method."""

from __future__ import annotations

import copy
import hashlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ironclip.attacks.base import Attack
from ironclip.attacks.objectives import is_correct
from ironclip.data.classes import check_class_names
from ironclip.data.contract import Dataset, Sample
from ironclip.data.order import epoch_order, hold_out, keep_labels, limit, read_batches
from ironclip.data.sources import open_dataset
from ironclip.errors import ConfigError, DataError, RunFailedError
from ironclip.files import write_atomically
from ironclip.methods.base import Batch, ImageView, Method, Pass, Teacher, TextView, Views
from ironclip.models.clip import CLIPModel
from ironclip.models.sources import load_model, save_model
from ironclip.models.tuning import Tunable, tuned_parameters
from ironclip.models.zero_shot import encode_classes
from ironclip.randomness import SampleRandom
from ironclip.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from ironclip.training.optimisation import build_optimiser, learning_rate
from ironclip.training.recipe import Recipe
from ironclip.training.run_record import RunLog, write_record
from ironclip.training.sweep import choose
from ironclip.training.validation import HeldOut, Validation, validate

BAD_STEPS = 3
"""So many steps in a row with a loss or gradient that is not finite end the run."""


@dataclass(frozen=True)
class TrainingProgress:
    """What a progress display shows after a step.

    Attributes:
        step: Optimiser steps done.
        steps: Of so many.
        loss: Of the last step.
        attack_accuracy: Accuracy on the last batch as the training attack left it, None without labels.
        clean_accuracy: Of the last validation on held-out training images, None before the first.
        robust_accuracy: Likewise, under the validation attack.
        images_per_second: Since the run began or was resumed.
    """

    step: int
    steps: int
    loss: float
    attack_accuracy: float | None
    clean_accuracy: float | None
    robust_accuracy: float | None
    images_per_second: float


@dataclass
class Trainer:
    """A run with everything that a step needs. Made by `prepare`, driven by `train`.

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
    class_weights: Tensor | None = None
    progress: Progress = field(default_factory=Progress)

    @property
    def precision(self) -> torch.dtype:
        """Of the passes through the model."""
        return torch.bfloat16 if self.recipe.optimisation.precision == "bf16" else torch.float32

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
            terms, accuracy = self._losses(self._batch(part), epoch)
            total = torch.stack(list(terms.values())).sum()
            (total * share).backward()
            for name, term in {**terms, "loss": total}.items():
                logged[name] = logged.get(name, 0.0) + float(term.detach()) * share
            for name, value in accuracy.items():
                logged[name] = logged.get(name, 0.0) + value * share
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        logged["gradient_norm"] = float(norm)
        if torch.isfinite(norm) and logged["loss"] == logged["loss"]:
            if settings.clip_norm is not None:
                nn.utils.clip_grads_with_norm_(list(self.parameters.values()), settings.clip_norm, norm)
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
        """Count a step of which no sample could be read."""
        self.progress.step += 1
        self.progress.skipped += 1
        return {"loss": float("nan")}

    def _batch(self, samples: Sequence[Sample]) -> Batch:
        labels = [sample.label for sample in samples if sample.label is not None]
        return Batch(
            keys=[sample.key for sample in samples],
            pixels=torch.stack([sample.pixels for sample in samples]).to(self.model.device),
            labels=torch.tensor(labels, device=self.model.device) if len(labels) == len(samples) else None,
            captions=[sample.captions for sample in samples],
            class_weights=self._class_weights(),
        )

    def _class_weights(self) -> Tensor | None:
        """Encode the classes: once a run while the text tower is frozen, else anew."""
        if self.prompts is None:
            return None
        if self.class_weights is None or self.method.trains is not Tunable.VISION:
            self.class_weights = encode_classes(self.model, *self.prompts)
        return self.class_weights

    def _losses(self, batch: Batch, epoch: int) -> tuple[Mapping[str, Tensor], dict[str, float]]:
        """Attack the batch, compute the passes that the method declared, and its loss."""
        with self.model.computing(self.precision), self.teacher.model.computing(self.precision):
            attacked = self._attacked(batch, epoch)
            self.model.train()
            try:
                passes = self._passes(batch, attacked)
            finally:
                self.model.eval()
            terms = self.method.loss(Views(self.method.name, batch, passes, self.model.logit_scale.detach()))
        return terms, _accuracies(passes, batch, self.model.logit_scale)

    def _attacked(self, batch: Batch, epoch: int) -> Tensor | None:
        """Solve the inner problem; None where the method has none."""
        inner = self.method.adversaries(batch, self.model, self.teacher)
        if "text" in inner:
            raise ConfigError(
                f'method "{self.method.name}" attacks texts, and no text attack is registered.',
                'Use a method with an image adversary; "ironclip list attacks" shows what there is.',
            )
        if "image" not in inner:
            return None
        random = SampleRandom(self.recipe.seed, batch.keys, f"train|{epoch}")
        return self.attack.perturb(inner["image"].objective, batch.pixels, self.recipe.build_threat(), random)

    def _passes(self, batch: Batch, attacked: Tensor | None) -> dict[Pass, object]:
        """Compute each declared pass once; clean and attacked images of the student in one batch."""
        needs = self.method.needs
        passes: dict[Pass, object] = {}
        images = {Pass.STUDENT_CLEAN: batch.pixels, Pass.STUDENT_ADV: attacked}
        wanted = {name: _given(pixels, self.method, name) for name, pixels in images.items() if name in needs}
        if wanted:
            joined = self.model.embed_image(torch.cat(list(wanted.values())))
            for name, embedding in zip(wanted, joined.split(len(batch)), strict=True):
                passes[name] = ImageView(embedding, batch.class_weights)
        if Pass.TEACHER_CLEAN in needs:
            passes[Pass.TEACHER_CLEAN] = ImageView(self.teacher.embedding(batch), self._teacher_classes(batch))
        if Pass.TEACHER_ADV in needs:
            with torch.no_grad():
                embedding = self.teacher.model.embed_image(_given(attacked, self.method, Pass.TEACHER_ADV))
            passes[Pass.TEACHER_ADV] = ImageView(embedding, self._teacher_classes(batch))
        for name, model, pixels in (
            (Pass.STUDENT_CLEAN_PATCHES, self.model, batch.pixels),
            (Pass.STUDENT_ADV_PATCHES, self.model, attacked),
            (Pass.TEACHER_CLEAN_PATCHES, self.teacher.model, batch.pixels),
        ):
            if name in needs:
                passes[name] = model.patch_tokens(_given(pixels, self.method, name))
        for name, model in ((Pass.STUDENT_TEXT, self.model), (Pass.TEACHER_TEXT, self.teacher.model)):
            if name in needs:
                passes[name] = TextView(model.embed_text(self._texts(batch)))
        return passes

    def _teacher_classes(self, batch: Batch) -> Tensor | None:
        """Return the teacher's class weights: the student's own while the text tower is frozen."""
        if self.prompts is None or self.method.trains is Tunable.VISION:
            return batch.class_weights
        return encode_classes(self.teacher.model, *self.prompts)

    def _texts(self, batch: Batch) -> list[str]:
        """Return one text a sample: its first caption, or the first prompt of its class."""
        if all(batch.captions):
            return [captions[0] for captions in batch.captions]
        if self.prompts is None or batch.labels is None:
            raise DataError(f'method "{self.method.name}" reads texts, but the data have none.', "Use captioned data.")
        names, templates = self.prompts
        return [templates[0].format(names[label]) for label in batch.labels.tolist()]

    def validate(self, samples: int | None = None) -> Validation | None:
        """Run the validation on the first `samples` held-out images (all by default)."""
        if self.held_out is None:
            return None
        count = len(self.held_out.keys) if samples is None else samples
        return validate(
            self.model,
            self.held_out.first(count),
            self._class_weights(),
            attack=self.recipe.build_validation_attack(),
            train_attack=self.attack if self._adversarial else None,
            threat=self.recipe.build_threat(),
            seed=self.recipe.seed,
            precision=self.precision,
        )

    @property
    def _adversarial(self) -> bool:
        return bool(self.method.needs & {Pass.STUDENT_ADV, Pass.STUDENT_ADV_PATCHES, Pass.TEACHER_ADV})


def prepare(recipe: Recipe, *, device: str, data_root: str, limit_to: int | None, strict: bool) -> Trainer:
    """Open data and model and build everything that a run needs.

    Raises:
        ConfigError: The method reads other samples' terms (`across_batch`) and the recipe splits the batch.
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
    if recipe.data.classes == "present" and data.labels is not None:
        data = keep_labels(data, sorted(set(data.labels)), relabel=True)
    for count in (recipe.data.limit, limit_to):
        data = limit(data, count) if count is not None else data
    model = load_model(recipe.model, device=device)
    teacher = Teacher(copy.deepcopy(model))
    prompts = _prompts(recipe, method, data)
    held_out = None
    if recipe.data.hold_out:
        data, kept = hold_out(data, recipe.data.hold_out)
        held_out = _read_held_out(kept, teacher, strict, labelled=prompts is not None)
    model.requires_grad_(False)
    parameters = tuned_parameters(model, method.trains)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    optimiser = build_optimiser(parameters.values(), recipe.optimisation)
    return Trainer(
        recipe, method, recipe.build_attack(), model, teacher, data, held_out, prompts, parameters, optimiser
    )


def train(
    recipe: Recipe,
    out: Path,
    *,
    device: str = "cpu",
    data_root: str = "data",
    limit: int | None = None,
    strict: bool = False,
    command: Sequence[str] = (),
    progress: Callable[[TrainingProgress], None] | None = None,
) -> Path:
    """Run a recipe, or go on with it where `out` holds its checkpoint; the result is the same, bit for bit.

    A recipe with a sweep first tries its learning rates in short runs under `out/sweep`.

    Args:
        recipe: The run.
        out: The run folder: run.json, log.jsonl, checkpoint.safetensors, and at the end model/ (open_clip's layout).
        device: "cpu", "cuda", "cuda:1".
        data_root: What `{data}` in the recipe stands for.
        limit: Take so many training samples (before the held-out part is split off).
        strict: An unreadable sample is fatal, not only counted.
        command: What the user typed, for the record.
        progress: Called after each step.

    Returns:
        `out`.

    Raises:
        ResumeError: `out` holds another run.
        RunFailedError: Three steps in a row without a finite loss; the last good checkpoint is named.
        KeyboardInterrupt, SystemExit: After SIGINT or SIGTERM, with a checkpoint written first.
    """
    if recipe.sweep is not None:

        def trial(short: Recipe, folder: Path) -> Path:
            return train(
                short,
                folder,
                device=device,
                data_root=data_root,
                limit=limit,
                strict=strict,
                command=command,
                progress=progress,
            )

        recipe = choose(recipe, out, trial)
    trainer = prepare(recipe, device=device, data_root=data_root, limit_to=limit, strict=strict)
    record, key = write_record(out, trainer, command=command, device=device)
    resumed = load_checkpoint(out, key, dict(trainer.parameters), trainer.optimiser)
    best: dict[str, Tensor] = {}
    if resumed is not None:
        trainer.progress, best = resumed
    log = RunLog(out, trainer.progress.step)
    last: Validation | None = None
    began, images_before = time.monotonic(), trainer.progress.images

    def checkpoint() -> Path:
        return save_checkpoint(out, key, trainer.progress, dict(trainer.parameters), trainer.optimiser, best)

    with _stop_signal() as stopped:
        for epoch, samples in trainer.batches(strict):
            if trainer.progress.step >= trainer.steps:
                break
            logged = trainer.step(samples, epoch) if samples else trainer.pass_over()
            step, done = trainer.progress.step, trainer.progress.step >= trainer.steps
            rate = (trainer.progress.images - images_before) / (time.monotonic() - began)
            log.write({"step": step, "epoch": epoch, **logged, "images_per_second": rate})
            if trainer.progress.skipped_in_a_row >= BAD_STEPS:
                raise RunFailedError(
                    f"the loss was not finite in {BAD_STEPS} steps in a row (step {step}).",
                    f"The weights before them are kept in {checkpoint()}. Lower optimisation.lr, or set clip_norm.",
                )
            if (step % recipe.validation.every == 0 or done) and trainer.held_out is not None:
                last = trainer.validate(None if done else recipe.validation.samples)
                if last is not None:
                    log.write({"step": step, "validation": asdict(last)})
                    if recipe.select == "best" and last.value > trainer.progress.best_value:
                        trainer.progress.best_step, trainer.progress.best_value = step, last.value
                        best = {name: value.detach().clone() for name, value in trainer.parameters.items()}
            if step % recipe.checkpoint.every == 0 or done or stopped.is_set():
                checkpoint()
            if progress:
                progress(
                    TrainingProgress(
                        step,
                        trainer.steps,
                        logged["loss"],
                        logged.get("attack_accuracy"),
                        last.clean_accuracy if last else None,
                        last.robust_accuracy if last else None,
                        rate,
                    )
                )
            if stopped.is_set():
                raise SystemExit(143)
    return _finish(trainer, out, record, best)


def _finish(trainer: Trainer, out: Path, record: dict[str, Any], best: Mapping[str, Tensor]) -> Path:
    """Save the chosen weights as a model folder and complete the record."""
    if trainer.recipe.select == "best" and best:
        with torch.no_grad():
            for name, parameter in trainer.parameters.items():
                parameter.copy_(best[name])
    save_model(trainer.model, out / "model")
    done = {
        "steps": trainer.progress.step,
        "images": trainer.progress.images,
        "skipped_steps": trainer.progress.skipped,
        "unreadable": trainer.progress.unreadable,
        "best_step": trainer.progress.best_step if trainer.recipe.select == "best" else None,
        "weights_sha256": hashlib.sha256((out / "model" / "open_clip_model.safetensors").read_bytes()).hexdigest(),
    }
    write_atomically(out / "result.json", json.dumps(done, indent=1).encode())
    return out


def _prompts(recipe: Recipe, method: Method, data: Dataset) -> tuple[Sequence[str], Sequence[str]] | None:
    """Return class names and templates: the recipe's, or those of the source; None where there is no need."""
    names, templates = recipe.data.class_names or data.class_names, recipe.data.templates or data.templates
    if data.labels is not None and names and templates:
        check_class_names(names, data.labels)
        return names, templates
    if method.reads_classes:
        missing = "labels" if data.labels is None else "class names" if not names else "templates"
        raise DataError(
            f'method "{method.name}" compares images with class prompts, but {data.source} has no {missing}.',
            "Give data.class_names and data.templates in the recipe, or use a method without labels (fare).",
        )
    return None


def _read_held_out(kept: Dataset, teacher: Teacher, strict: bool, *, labelled: bool) -> HeldOut:
    """Read the held-out images once, in the order of a hash of their keys, with the teacher's embedding."""
    unreadable: dict[str, str] = {}
    order = epoch_order(kept.keys, 0, -1)
    samples = [s for batch in read_batches(kept, order, 64, strict=strict, unreadable=unreadable) for s in batch]
    device = teacher.model.device
    pixels = torch.stack([sample.pixels for sample in samples]).to(device)
    labels = (
        torch.tensor([s.label if s.label is not None else -1 for s in samples], device=device) if labelled else None
    )
    with torch.no_grad():
        embedding = torch.cat([teacher.model.embed_image(part) for part in pixels.split(64)])
    return HeldOut([sample.key for sample in samples], pixels, labels, embedding)


def _given(pixels: Tensor | None, method: Method, name: Pass) -> Tensor:
    if pixels is None:
        raise ConfigError(
            f'method "{method.name}" needs Pass.{name.name}, but declares no image adversary.',
            "Return an inner problem from `adversaries`, or drop the pass from `needs`.",
        )
    return pixels


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


@contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """Turn SIGTERM into an event that the loop looks at after each step; handlers are put back."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGTERM, before)
