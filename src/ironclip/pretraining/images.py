"""Train the image tower against the frozen text tower: images are to lie where the words for them do."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ironclip.errors import ConfigError, ResumeError, RunFailedError
from ironclip.files import write_atomically
from ironclip.models.clip import CLIPModel
from ironclip.models.fast import VisionWeights, pack, why_not
from ironclip.models.tuning import Tunable, tuned_parameters
from ironclip.pretraining.augmentation import Draws, View, change_view, kept_patches, mix_images
from ironclip.pretraining.corpus import Corpus, Part
from ironclip.pretraining.image_tower import embed_patches_kept, one_word_apart, prompt_loss, zero_shot_accuracy
from ironclip.pretraining.optimisers import build_optimisers, learning_rate
from ironclip.pretraining.recipe import ImagesSection
from ironclip.pretraining.texts import CaptionBank, EmbedTexts, PromptBank, embed_captions, embed_prompts
from ironclip.training.checkpoint import FILE, Progress, load_checkpoint, save_checkpoint
from ironclip.training.run_record import RunLog
from ironclip.training.stopping import stop_signals

SCALE = "logit_scale"
_LARGEST_SCALE = 100.0
_VALIDATED_AT_ONCE = 256


@dataclass(frozen=True)
class ImagesProgress:
    """What a progress display shows after a step.

    Attributes:
        step: Optimiser steps done.
        steps: Of so many.
        loss: Of the last step.
        accuracy: By source, of the last validation: held-out images of the classes that are trained on.
        images_per_second: Since the run began or was resumed.
    """

    step: int
    steps: int
    loss: float
    accuracy: Mapping[str, float]
    images_per_second: float


def train_images(
    model: CLIPModel,
    corpus: Corpus,
    settings: ImagesSection,
    out: Path,
    *,
    seed: int,
    key: str,
    embed: EmbedTexts | None = None,
    progress: Callable[[ImagesProgress], None] | None = None,
) -> dict[str, float]:
    """Train the image tower and the logit scale, or go on where `out` holds a checkpoint; the same bit for bit.

    The text tower is only read. Afterwards the model has the running mean of the weights (EMA).

    Args:
        model: With its text tower as it is to stay.
        corpus: The images.
        settings: How.
        out: Folder of log.jsonl and checkpoint.safetensors.
        seed: Of everything that is drawn.
        key: Hash of what the run is, `settings.steps` left out: a run may be made longer before its rate falls.
        embed: Texts to unit rows; the model's own text tower unless given.
        progress: Called after each step.

    Returns:
        The last validation: accuracy by source.

    Raises:
        ConfigError: The image tower is not one that the fast path serves.
        ResumeError: `out` holds another run, or one whose learning rate fell for another number of steps.
        RunFailedError: The loss is not finite; the last good checkpoint is named.
        KeyboardInterrupt, SystemExit: After SIGINT or SIGTERM, with a checkpoint written first.
    """
    if reason := why_not(model.visual):
        raise ConfigError(f"this image tower cannot be pre-trained: {reason}.", "Use a plain ViT of open_clip.")
    model.requires_grad_(False)
    parameters = {**tuned_parameters(model, Tunable.VISION), SCALE: model.log_logit_scale}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    run = _Run(model, corpus, settings, seed, embed or model.text_features)
    optimiser = build_optimisers(parameters, settings)
    resumed = load_checkpoint(out, key, dict(parameters), optimiser)
    state, mean = resumed or (Progress(), {name: value.detach().clone() for name, value in parameters.items()})
    mean = {name: value.to(model.device) for name, value in mean.items()}
    _refuse_other_length(out, state.step, settings)
    log, accuracy = RunLog(out, state.step), {}
    began, images_before = time.monotonic(), state.images
    with stop_signals() as stopped:
        while state.step < settings.steps:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(state.step, settings)
            optimiser.zero_grad()
            losses = run.losses(state.step)
            loss = torch.stack(list(losses.values())).sum()
            loss.backward()
            if not math.isfinite(float(loss.detach())):
                raise RunFailedError(
                    f"the loss is not finite in step {state.step + 1}.",
                    f"The last good checkpoint is {out / FILE}, if there is one. Lower images.lr.",
                )
            optimiser.step()
            with torch.no_grad():
                model.log_logit_scale.clamp_(max=math.log(_LARGEST_SCALE))
                # The first weights are forgotten faster than the last.
                decay = min(settings.ema, (1 + state.step) / (10 + state.step))
                for name, value in parameters.items():
                    mean[name].lerp_(value, 1 - decay)
            state.step += 1
            state.images += run.batch_size
            rate = (state.images - images_before) / (time.monotonic() - began)
            done = state.step == settings.steps
            log.write({
                "step": state.step,
                "lr": optimiser.param_groups[0]["lr"],
                **{name: float(value.detach()) for name, value in losses.items()},
                "logit_scale": float(model.logit_scale.detach()),
                "images_per_second": rate,
            })  # fmt: skip
            if state.step % settings.validate_every == 0 or done:
                accuracy = run.validate(parameters, mean)
                log.write({"step": state.step, "validation": accuracy})
            if progress:
                progress(ImagesProgress(state.step, settings.steps, float(loss.detach()), accuracy, rate))
            if state.step % settings.checkpoint_every == 0 or done or stopped:
                save_checkpoint(out, key, state, dict(parameters), optimiser, mean)
            if stopped:
                raise stopped[0]
    accuracy = accuracy or run.validate(parameters, mean)
    optimiser.zero_grad()
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(mean[name])
            value.requires_grad_(False)
    return accuracy


def _refuse_other_length(out: Path, step: int, settings: ImagesSection) -> None:
    """Let a run be made longer or shorter only while its learning rate has not begun to fall."""
    path = out / "length.json"
    if path.is_file() and step:
        before = json.loads(path.read_text())
        if before["steps"] != settings.steps and step > min(before["stable_steps"], settings.stable_steps):
            raise ResumeError(
                f"{out} stands at step {step} of {before['steps']}, where the learning rate had begun to fall, "
                f"and is to go on to {settings.steps}.",
                f"Finish it with images.steps={before['steps']}, or begin anew in another folder.",
            )
    record = {"steps": settings.steps, "stable_steps": settings.stable_steps}
    write_atomically(path, json.dumps(record).encode())


class _Run:
    """Everything that a step reads."""

    def __init__(self, model: CLIPModel, corpus: Corpus, settings: ImagesSection, seed: int, embed: EmbedTexts) -> None:
        self.model, self.corpus, self.settings, self.seed = model, corpus, settings, seed
        self.dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
        with torch.no_grad():
            self.prompts: dict[str, PromptBank] = {
                part.name: embed_prompts(part, embed) for part in corpus.parts if part.labels is not None
            }
            self.captions: dict[str, CaptionBank] = {
                part.name: embed_captions(part, embed) for part in corpus.parts if part.labels is None
            }
            self.rivals = {
                part.name: one_word_apart([words[0] for words in part.words]).to(model.device)
                for part in corpus.parts
                if part.settings.rivals == "one_word_apart"
            }
            self.unmet = {part.name: embed_prompts(part, embed) for part in corpus.unmet}

    @property
    def batch_size(self) -> int:
        """Images a step."""
        return sum(part.settings.per_batch for part in self.corpus.parts)

    def losses(self, step: int) -> dict[str, Tensor]:
        """Compute the loss of a step, a term a source: its share of the batch times its mean."""
        device, parts = self.model.device, self.corpus.parts
        chosen = [part.rows(self.seed, step) for part in parts]
        views, partners, owns, keys, epochs = [], [], [], [], []
        for part, (rows, own_epochs) in zip(parts, chosen, strict=True):
            own_keys = [part.keys[row] for row in rows.tolist()]
            draws = Draws.of(own_keys, own_epochs, self.seed)
            how = View(part.settings.zoom, part.settings.flip, part.settings.colour)
            pixels = change_view(part.pixels[rows].to(device).float() / 255, draws, how)
            pixels, partner, own = mix_images(pixels, draws, part.settings.mix)
            views.append(pixels)
            partners.append(partner)
            owns.append(own)
            keys += own_keys
            epochs += own_epochs
        features = self._features(torch.cat(views), self._kept(keys, epochs, step))
        found = features.split([len(view) for view in views])
        return {
            part.name: self._part_loss(part, own, rows, partner, weight, step) * (len(rows) / len(features))
            for part, own, (rows, _), partner, weight in zip(parts, found, chosen, partners, owns, strict=True)
        }

    def _part_loss(self, part: Part, features: Tensor, rows: Tensor, partner: Tensor, own: Tensor, step: int) -> Tensor:
        scale, settings = self.model.logit_scale, self.settings
        if part.labels is None:
            texts = self.captions[part.name].draw(part.name, rows, settings.captions_against, self.seed, step)
            labels = torch.arange(len(rows), device=features.device)
        else:
            texts = self.prompts[part.name].draw(part.name, self.seed, step)
            labels = part.labels[rows].to(features.device)
        return prompt_loss(features, texts, labels, partner, own, scale, self.rivals.get(part.name)).mean()

    def _kept(self, keys: list[str], epochs: list[int], step: int) -> Tensor | None:
        if self.settings.patches == 1 or step >= self.settings.stable_steps:
            return None
        side = self.model.input_resolution // int(self.model.clip.visual.conv1.kernel_size[0])
        kept = max(1, round(self.settings.patches * side * side))
        return kept_patches(keys, epochs, self.seed, side * side, kept).to(self.model.device)

    def _features(self, pixels: Tensor, kept: Tensor | None) -> Tensor:
        weights = pack(self.model.visual, self.dtype)
        return F.normalize(embed_patches_kept(weights, self.model.spec.preprocessing.normalise(pixels), kept), dim=-1)

    def validate(self, parameters: Mapping[str, nn.Parameter], mean: Mapping[str, Tensor]) -> dict[str, float]:
        """Measure the mean weights on held-out images: by source top-1, and on classes that are not trained on."""
        now = {name: value.detach().clone() for name, value in parameters.items()}
        found: dict[str, float] = {}
        with torch.no_grad():
            for name, value in parameters.items():
                value.copy_(mean[name])
            weights = pack(self.model.visual, self.dtype)
            for title, parts, banks in (
                ("", self.corpus.held_out, self.prompts),
                (" unmet", self.corpus.unmet, self.unmet),
            ):
                for part in parts:
                    features = torch.cat([self._plain(weights, some) for some in part.pixels.split(_VALIDATED_AT_ONCE)])
                    labels = part.labels.to(features.device) if part.labels is not None else torch.empty(0)
                    top1, per_class = zero_shot_accuracy(features, banks[part.name].mean, labels)
                    found[part.name + title], found[f"{part.name}{title} per class"] = top1, per_class
            for name, value in parameters.items():
                value.copy_(now[name])
        return found

    def _plain(self, weights: VisionWeights, pixels: Tensor) -> Tensor:
        normalised = self.model.spec.preprocessing.normalise(pixels.to(self.model.device).float() / 255)
        return F.normalize(embed_patches_kept(weights, normalised, None), dim=-1)
