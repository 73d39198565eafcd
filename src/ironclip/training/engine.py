"""The loop: batch, adversaries, views, loss, step. One for every method."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ironclip.errors import RunFailedError
from ironclip.files import write_atomically
from ironclip.models.pieces import save_pieces
from ironclip.models.sources import save_model
from ironclip.models.tuning import Tunable
from ironclip.training.checkpoint import FILE, load_checkpoint, save_checkpoint
from ironclip.training.recipe import Recipe
from ironclip.training.run_record import RunLog, run_key, write_record
from ironclip.training.setup import prepare
from ironclip.training.stopping import stop_signals
from ironclip.training.sweep import choose
from ironclip.training.trainer import Trainer, put
from ironclip.training.validation import Validation

BAD_STEPS = 3
"""So many steps in a row with a loss or gradient that is not finite end the run."""

RESULT = "result.json"
"""Written last: a run folder that has it is complete."""


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


def train(
    recipe: Recipe,
    out: Path,
    *,
    device: str = "cpu",
    data_root: str = "data",
    limit: int | None = None,
    strict: bool = False,
    teacher_cache: Path | None = None,
    fast: bool = True,
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
        teacher_cache: Folder of the teacher's embeddings of clean images, which are computed there once for all runs;
            see `training.teacher_cache`. None: they are computed as they are needed.
        fast: Use the fast path where it serves the towers.
        command: What the user typed, for the record.
        progress: Called after each step.

    Returns:
        `out`.

    Raises:
        ResumeError: `out` holds another run.
        RunFailedError: Three steps in a row without a finite loss; the last good checkpoint is named.
        KeyboardInterrupt, SystemExit: After SIGINT or SIGTERM, with a checkpoint written first.
    """
    if limit is not None:
        smaller = min(limit, recipe.data.limit or limit)
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"limit": smaller})})
    if recipe.sweep is not None:

        def trial(short: Recipe, folder: Path) -> Path:
            return train(
                short,
                folder,
                device=device,
                data_root=data_root,
                strict=strict,
                teacher_cache=teacher_cache,
                fast=fast,
                command=command,
                progress=progress,
            )

        recipe = choose(recipe, out, trial)
    trainer = prepare(recipe, device=device, data_root=data_root, strict=strict, teacher_cache=teacher_cache, fast=fast)
    key = run_key(trainer)
    resumed = load_checkpoint(out, key, dict(trainer.parameters), trainer.optimiser)
    best: dict[str, Tensor] = {}
    if resumed is None:
        write_record(out, trainer, command=command, device=device)
    else:
        trainer.progress, best = resumed
        if trainer.progress.step >= trainer.steps and (out / RESULT).exists():
            return out
    log = RunLog(out, trainer.progress.step)
    last: Validation | None = None
    began, images_before = time.monotonic(), trainer.progress.images

    def checkpoint() -> Path:
        if not all(bool(torch.isfinite(value).all()) for value in trainer.parameters.values()):
            raise RunFailedError(
                f"the weights are not finite after step {trainer.progress.step}.",
                f"The last good checkpoint is {out / FILE}, if there is one. Lower optimisation.lr, or set clip_norm.",
            )
        return save_checkpoint(out, key, trainer.progress, dict(trainer.parameters), trainer.optimiser, best)

    with stop_signals() as stopped:
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
                last = trainer.validate(None if done or recipe.select == "best" else recipe.validation.samples)
                if last is not None:
                    log.write({"step": step, "validation": asdict(last)})
                    if recipe.select == "best" and last.value > trainer.progress.best_value:
                        trainer.progress.best_step, trainer.progress.best_value = step, last.value
                        best = {name: value.detach().clone() for name, value in trainer.evaluated().items()}
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
            stop = stopped[0] if stopped else None
            if step % recipe.checkpoint.every == 0 or done or stop is not None:
                checkpoint()
            if stop is not None and not done:
                raise stop
        finished = _finish(trainer, out, best)
        if stopped:
            raise stopped[0]  # the run is complete, but what comes after it (a sweep's next trial) must not begin
    return finished


def _finish(trainer: Trainer, out: Path, best: Mapping[str, Tensor]) -> Path:
    """Save the chosen weights, as a model folder or as prompts or adapters alone, then what the run came to."""
    chosen = best if trainer.recipe.select == "best" and best else trainer.evaluated()
    put({name: p for name, p in trainer.parameters.items() if chosen[name] is not p}, chosen)
    if trainer.method.trains is Tunable.PROMPTS:
        weights = save_pieces(trainer.model, out / "model", ("prompts",), base=trainer.model.spec)
    elif trainer.method.trains is Tunable.ADAPTERS:
        weights = save_pieces(trainer.model, out / "model", ("adapters",), base=trainer.model.spec)
    else:
        weights = save_model(trainer.model, out / "model")
    done = {
        "steps": trainer.progress.step,
        "images": trainer.progress.images,
        "skipped_steps": trainer.progress.skipped,
        "unreadable": trainer.progress.unreadable | trainer.unreadable,
        "best_step": trainer.progress.best_step if trainer.recipe.select == "best" else None,
        "weights_sha256": weights,
    }
    write_atomically(out / RESULT, json.dumps(done, indent=1).encode())
    return out
