"""Train tiny-vlm: teacher forcing on frozen patch tokens, resumable to the step."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import nn

from ironclip.errors import RunFailedError
from ironclip.files import write_atomically
from ironclip.models.sources import load_model
from ironclip.models.tiny_vlm import TinyVLM, Vocabulary, save_tiny_vlm
from ironclip.models.vlm import CAPTION_PROMPT, answer_loss
from ironclip.pretraining.vlm.lessons import Material, draw, read_material
from ironclip.pretraining.vlm.recipe import VlmRecipe
from ironclip.provenance import source_sha256, versions
from ironclip.training.checkpoint import FILE, Progress, load_checkpoint, save_checkpoint
from ironclip.training.optimisation import build_optimiser, learning_rate
from ironclip.training.run_record import RunLog
from ironclip.training.stopping import stop_signals

RESULT = "result.json"
"""Written last: a run folder that has it is complete."""

GRAY = 0.5
"""All that a blind decoder is shown."""


@dataclass(frozen=True)
class VlmProgress:
    """What a progress display shows after a step: the loss is that of the last batch, in nats a word."""

    step: int
    steps: int
    loss: float
    images_per_second: float


def train_vlm(
    recipe: VlmRecipe,
    out: Path,
    *,
    device: str = "cpu",
    data_root: str = "data",
    strict: bool = False,
    command: Sequence[str] = (),
    progress: Callable[[VlmProgress], None] | None = None,
) -> Path:
    """Run a recipe, or go on with it where `out` holds its checkpoint; on a CPU to the same bits.

    Args:
        recipe: The run.
        out: The run folder: run.json, log.jsonl, checkpoint.safetensors, and at the end model/ and result.json.
        device: "cpu", "cuda", "cuda:1".
        data_root: What `{data}` in the recipe stands for.
        strict: An unreadable image is fatal, not only counted.
        command: What the user typed, for the record.
        progress: Called after each step.

    Returns:
        `out`.

    Raises:
        ConfigError, DataError, WeightsError: Something that the recipe names is missing or does not fit.
        ResumeError: `out` holds another run.
        RunFailedError: A loss or gradient is not finite; the last good checkpoint is named.
        KeyboardInterrupt, SystemExit: After SIGINT or SIGTERM, with a checkpoint written first.
    """
    clip = load_model(recipe.tower, device=device)
    unreadable: dict[str, str] = {}
    read = [
        read_material(
            name,
            section,
            data_root=data_root,
            resolution=clip.input_resolution,
            unreadable=unreadable,
            strict=strict,
        )
        for name, section in recipe.sources.items()
    ]
    materials = [material for material, _ in read]
    texts = [CAPTION_PROMPT] * recipe.rarest + [text for material in materials for text in material.texts()]
    model = TinyVLM(clip, Vocabulary.of(texts, at_least=recipe.rarest), recipe.decoder, seed=recipe.seed)
    prints = [fingerprint for _, fingerprint in read]
    _write_record(out, recipe, materials, command=command, device=device)
    loss = _Training(model, materials, recipe).to_the_end(out, _key(recipe, clip.spec.sha256, prints), progress)
    save_tiny_vlm(model, out / "model")
    done = {"steps": recipe.steps, "loss": loss, "words": len(model.vocabulary), "unreadable": unreadable}
    write_atomically(out / RESULT, json.dumps(done, indent=1).encode())
    return out


class _Training:
    """The loop over steps, and what a step needs."""

    def __init__(self, model: TinyVLM, materials: Sequence[Material], recipe: VlmRecipe) -> None:
        self.model, self.materials, self.recipe = model, materials, recipe
        self.parameters = dict(model.decoder.named_parameters())
        self.optimisation = recipe.optimisation()
        self.optimiser = build_optimiser(self.parameters.values(), self.optimisation)

    def to_the_end(self, out: Path, key: str, progress: Callable[[VlmProgress], None] | None) -> float | None:
        """Do all steps that are not done yet; returns the loss of the last one, None where none was left."""
        resumed = load_checkpoint(out, key, dict(self.parameters), self.optimiser)
        state = Progress() if resumed is None else resumed[0]
        log, began, first, steps = RunLog(out, state.step), time.monotonic(), state.step, self.recipe.steps
        logged: dict[str, float] = {}
        with stop_signals() as stopped:
            while state.step < steps:
                logged = self.step(state.step)
                state.step += 1
                rate = (state.step - first) * self.optimisation.batch_size / (time.monotonic() - began)
                log.write({"step": state.step, **logged, "images_per_second": rate})
                if not all(map(math.isfinite, logged.values())):
                    raise RunFailedError(
                        f"the loss is not finite in step {state.step}.",
                        f"The last good checkpoint is {out / FILE}, if there is one. Lower lr.",
                    )
                if progress:
                    progress(VlmProgress(state.step, steps, logged["loss"], rate))
                if state.step % self.recipe.checkpoint_every == 0 or state.step == steps or stopped:
                    save_checkpoint(out, key, state, dict(self.parameters), self.optimiser, {})
                if stopped:
                    raise stopped[0]
        self.optimiser.zero_grad(set_to_none=True)
        return logged.get("loss")

    def step(self, number: int) -> dict[str, float]:
        """Do one optimiser step, and return what is logged of it; one that is not finite changes nothing."""
        rate = learning_rate(number, self.recipe.steps, self.optimisation)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        batch = draw(self.materials, self.recipe.seed, number)
        lesson = self.model.write(batch.prompts, batch.answers)
        pixels = torch.full_like(batch.pixels, GRAY) if self.recipe.blind else batch.pixels
        dtype = torch.bfloat16 if self.recipe.precision == "bf16" else torch.float32
        with self.model.computing(dtype):
            loss = answer_loss(self.model.predict(pixels.to(self.model.device), lesson), lesson).mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.recipe.clip_norm)
        if torch.isfinite(norm):
            self.optimiser.step()
        return {"lr": rate, "loss": loss.item(), "gradient_norm": norm.item()}


def _key(recipe: VlmRecipe, tower: str, prints: Sequence[str]) -> str:
    """Hash what decides the result: recipe, tower, data. Not the machine, not the place."""
    content = recipe.model_dump(mode="json", exclude={"title", "tower", "checkpoint_every"})
    parts = [json.dumps(content, sort_keys=True), tower, *prints]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _write_record(
    out: Path, recipe: VlmRecipe, materials: Sequence[Material], *, command: Sequence[str], device: str
) -> None:
    """Write run.json; on a resume it stays as the first sitting wrote it."""
    if (out / "run.json").is_file():
        return
    record = {
        "command": shlex.join(command),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "source_sha256": source_sha256("ironclip.pretraining.vlm.train"),
        "device": device,
        "data": {material.name: len(material.keys) for material in materials},
        "recipe": recipe.model_dump(mode="json"),
    }
    write_atomically(out / "run.json", json.dumps(record, indent=1).encode())
