"""Distil a language into a text tower: words mean something before any image is seen.

Each phrase has a target (`targets.py`), and the tower learns to lie there, in whatever template the phrase stands.
Class names come more often than their number would have it, since every later image is judged against them.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ironclip.data.classes import fill_templates
from ironclip.errors import ConfigError, RunFailedError, ShapeError
from ironclip.files import write_atomically
from ironclip.models.clip import CLIPModel
from ironclip.models.tuning import Tunable, tuned_parameters
from ironclip.pretraining.phrases import TEMPLATES, Phrases
from ironclip.pretraining.short_texts import check_text_tower, text_features
from ironclip.pretraining.targets import Targets
from ironclip.randomness import digest
from ironclip.training.checkpoint import FILE, Progress, load_checkpoint, save_checkpoint
from ironclip.training.optimisation import build_optimiser, learning_rate
from ironclip.training.recipe import OptimisationSection
from ironclip.training.run_record import RunLog
from ironclip.training.stopping import stop_signals

RESULT = "result.json"
"""Written last: a folder that has it is complete."""

# So many words and sentences tell how well the rest is learned.
_MEASURED = 4096
_BATCH = 512


@dataclass(frozen=True, kw_only=True)
class LanguageSettings:
    """How a text tower is distilled.

    Attributes:
        steps: Optimiser steps (AdamW, linear warm-up, then cosine to 0).
        batch_size: Texts a step.
        lr: Learning rate after warm-up.
        warmup_steps: Steps before the schedule begins.
        weight_decay: Decoupled.
        class_share: Share of a batch that is class names, drawn evenly.
        sentence_share: Share that is sentences, where there are any; the rest is words.
        templates: What class names and words stand in, drawn evenly; "{}" is the bare phrase.
        precision: "bf16" (float32 masters, bfloat16 passes) or "float32".
        checkpoint_every: Steps between checkpoints.
    """

    steps: int = 2200
    batch_size: int = 768
    lr: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    class_share: float = 0.25
    sentence_share: float = 0.15
    templates: tuple[str, ...] = TEMPLATES
    precision: Literal["bf16", "float32"] = "bf16"
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"language.{name} is {getattr(self, name)}.", "Give at least 1.")
        if not 0 < self.lr < math.inf or not 0 <= self.weight_decay < math.inf:
            raise ConfigError(
                f"language: lr is {self.lr}, weight_decay {self.weight_decay}.",
                "Give a positive rate, and a decay from 0.",
            )
        if not 0 <= self.warmup_steps < self.steps:
            raise ConfigError(
                f"language.warmup_steps is {self.warmup_steps}, of {self.steps} steps in all.",
                "Warm up for fewer steps than the run has.",
            )
        if not 0 < self.class_share <= 1 or not 0 <= self.sentence_share <= 1 - self.class_share:
            raise ConfigError(
                f"language: class_share is {self.class_share}, sentence_share {self.sentence_share}.",
                "Give shares that leave room for each other, the first above 0.",
            )
        if self.precision not in ("bf16", "float32"):
            raise ConfigError(f'language.precision is "{self.precision}".', "Give bf16 or float32.")
        fill_templates("class", self.templates)

    def optimisation(self) -> OptimisationSection:
        """Return the part that says how to minimise, as training knows it."""
        return OptimisationSection(
            lr=self.lr,
            weight_decay=self.weight_decay,
            warmup_steps=self.warmup_steps,
            steps=self.steps,
            batch_size=self.batch_size,
            precision=self.precision,
        )


@dataclass(frozen=True)
class LanguageProgress:
    """What a progress display shows after a step.

    Attributes:
        step: Optimiser steps done.
        steps: Of so many.
        loss: One minus the mean cosine to the targets, of the last batch.
        texts_per_second: Since the run began or was resumed.
    """

    step: int
    steps: int
    loss: float
    texts_per_second: float


@dataclass(frozen=True, kw_only=True)
class LanguageResult:
    """How near the tower came to its targets: cosines in [-1, 1].

    Attributes:
        steps: Optimiser steps done.
        class_cosine: Mean over class names, in every template.
        lowest_class_cosine: The name and template that are worst.
        word_cosine: Mean over words, bare; None without any.
        sentence_cosine: Mean over sentences; None without any.
    """

    steps: int
    class_cosine: float
    lowest_class_cosine: float
    word_cosine: float | None
    sentence_cosine: float | None


def distil(
    model: CLIPModel,
    targets: Targets,
    settings: LanguageSettings,
    out: Path,
    *,
    seed: int = 0,
    progress: Callable[[LanguageProgress], None] | None = None,
) -> LanguageResult:
    """Train the text tower of a model to targets, or go on where `out` holds a checkpoint: on a CPU to the same bits.

    Nothing but the text tower is read or changed. Afterwards no gradients are left.

    Args:
        model: Fresh from its architecture, on the device that is to work.
        targets: Phrases and where they should lie; of the width of the model's embedding.
        settings: How.
        out: Folder of log.jsonl, checkpoint.safetensors, and at the end result.json.
        seed: Of what is drawn: batches and templates are a function of it and the step only.
        progress: Called after each step.

    Returns:
        How near it came.

    Raises:
        ConfigError: The text tower is not CLIP's own.
        ShapeError: The targets have another width than the embedding.
        ResumeError: `out` holds a run with other settings, targets or weights.
        RunFailedError: A loss or gradient is not finite; the last good checkpoint is named.
        KeyboardInterrupt, SystemExit: After SIGINT or SIGTERM, with a checkpoint written first.
    """
    check_text_tower(model)
    parameters = tuned_parameters(model, Tunable.TEXT)
    width = model.spec.architecture["embed_dim"]
    if targets.rows.shape[1] != width:
        raise ShapeError(
            f"targets of width {targets.rows.shape[1]} for a model whose embedding has width {width}.",
            "Make the targets with targets.width set to it.",
        )
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    optimiser = build_optimiser(parameters.values(), settings.optimisation())
    key = _key(model, targets, settings, seed)
    resumed = load_checkpoint(out, key, dict(parameters), optimiser)
    state = Progress() if resumed is None else resumed[0]
    if state.step >= settings.steps and (out / RESULT).is_file():
        return LanguageResult(**json.loads((out / RESULT).read_text()))
    log = RunLog(out, state.step)
    work = _Distillation(model, targets.phrases, targets.rows.to(model.device), optimiser, settings, seed)
    began, first = time.monotonic(), state.step
    with stop_signals() as stopped:
        while state.step < settings.steps:
            logged = work.step(state.step)
            state.step += 1
            rate = (state.step - first) * settings.batch_size / (time.monotonic() - began)
            log.write({"step": state.step, **logged, "texts_per_second": rate})
            if not all(map(math.isfinite, logged.values())):
                raise RunFailedError(
                    f"the loss is not finite in step {state.step}.",
                    f"The last good checkpoint is {out / FILE}, if there is one. Lower language.lr.",
                )
            if progress:
                progress(LanguageProgress(state.step, settings.steps, logged["loss"], rate))
            done = state.step == settings.steps
            if state.step % settings.checkpoint_every == 0 or done or stopped:
                save_checkpoint(out, key, state, dict(parameters), optimiser, {})
            if stopped:
                raise stopped[0]
    optimiser.zero_grad(set_to_none=True)
    result = measure(model, targets, settings, steps=state.step)
    write_atomically(out / RESULT, json.dumps(asdict(result), indent=1).encode())
    return result


def draw(phrases: Phrases, settings: LanguageSettings, seed: int, step: int) -> tuple[list[str], list[int]]:
    """Draw a batch: the texts, and for each the row of its target. A function of its arguments only."""
    random = np.random.Generator(np.random.Philox(key=int.from_bytes(digest(seed, "language", step), "big")))
    sentences = round(settings.sentence_share * settings.batch_size) if phrases.sentences else 0
    words = settings.batch_size - sentences - round(settings.class_share * settings.batch_size) if phrases.words else 0
    ends = np.cumsum([len(phrases.class_names), len(phrases.words), len(phrases.sentences)])
    counts = (settings.batch_size - words - sentences, words, sentences)
    spans = ((0, ends[0]), (ends[0], ends[1]), (ends[1], ends[2]))
    picked = np.concatenate([random.integers(*span, count) for span, count in zip(spans, counts, strict=True) if count])
    templates = random.integers(0, len(settings.templates), settings.batch_size)
    everything = phrases.all
    texts = [
        everything[row] if row >= ends[1] else settings.templates[template].replace("{}", everything[row])
        for row, template in zip(picked, templates, strict=True)
    ]
    return texts, picked.tolist()


def measure(model: CLIPModel, targets: Targets, settings: LanguageSettings, *, steps: int = 0) -> LanguageResult:
    """Compare a text tower with its targets: every class name in every template, and some thousand other phrases."""
    phrases, rows = targets.phrases, targets.rows
    first, second = len(phrases.class_names), len(phrases.class_names) + len(phrases.words)
    prompts = [prompt for name in phrases.class_names for prompt in fill_templates(name, settings.templates)]
    classes = _cosines(model, prompts, rows[:first].repeat_interleave(len(settings.templates), dim=0))
    return LanguageResult(
        steps=steps,
        class_cosine=float(classes.mean()),
        lowest_class_cosine=float(classes.min()),
        word_cosine=_sampled_cosine(model, phrases.words, rows[first:second]),
        sentence_cosine=_sampled_cosine(model, phrases.sentences, rows[second:]),
    )


@dataclass(frozen=True)
class _Distillation:
    """What a step needs."""

    model: CLIPModel
    phrases: Phrases
    rows: Tensor
    optimiser: torch.optim.Optimizer
    settings: LanguageSettings
    seed: int

    def step(self, number: int) -> dict[str, float]:
        """Do one optimiser step, and return what is logged of it; one that is not finite changes nothing."""
        rate = learning_rate(number, self.settings.steps, self.settings.optimisation())
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        texts, picked = draw(self.phrases, self.settings, self.seed, number)
        ids = self.model.tokenize(texts)
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            features = text_features(self.model, ids)
        loss = 1 - (features * self.rows[torch.tensor(picked, device=self.rows.device)]).sum(dim=1).mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, math.inf)  # without a bound it only measures
        if torch.isfinite(norm):
            self.optimiser.step()
        return {"lr": rate, "loss": loss.item(), "gradient_norm": norm.item()}


def _cosines(model: CLIPModel, texts: Sequence[str], rows: Tensor) -> Tensor:
    with torch.no_grad():
        features = [
            text_features(model, model.tokenize(texts[at : at + _BATCH])) for at in range(0, len(texts), _BATCH)
        ]
    return (torch.cat(features).cpu() * rows).sum(dim=1)


def _sampled_cosine(model: CLIPModel, texts: Sequence[str], rows: Tensor) -> float | None:
    stride = -(-len(texts) // _MEASURED) or 1
    return float(_cosines(model, texts[::stride], rows[::stride]).mean()) if texts else None


def _key(model: CLIPModel, targets: Targets, settings: LanguageSettings, seed: int) -> str:
    """Hash what decides the result: settings, phrases, targets, first weights, seed. Not the machine, not the place."""
    chosen = {name: value for name, value in asdict(settings).items() if name != "checkpoint_every"}
    parts = [json.dumps(chosen, sort_keys=True), targets.phrases.sha256, model.spec.sha256, str(seed)]
    rows = hashlib.sha256(targets.rows.contiguous().numpy().tobytes()).hexdigest()
    return hashlib.sha256("\n".join([*parts, rows]).encode()).hexdigest()
