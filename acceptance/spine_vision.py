"""ViT-B/32 with fixed random weights: the same numbers as stock open_clip, in less time."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from benchmarks.vision_speed import measure
from safetensors.torch import save_file
from torch import Tensor

from acceptance.claims import Bound, CannotRunError, Claim, Context, Figure, at_least, at_most, item
from ironclip.models.clip import CLIPModel
from ironclip.models.sources import load_model

NAME = "ViT-B-32"
PROMPTS = [
    f"a photo of a {word}." for word in ("cat", "dog", "ship", "frog", "horse", "truck", "bird", "deer", "plane", "car")
]
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
BATCH = 32


@dataclass(frozen=True)
class StockModel:
    """Stock open_clip with the preprocessing written out, and the text features of some prompts, `[C, D]`."""

    clip: Any
    texts: Tensor

    @classmethod
    def load(cls, folder: Path) -> StockModel:
        clip, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}", precision="fp32")
        clip.eval().requires_grad_(False)
        texts = clip.encode_text(open_clip.get_tokenizer(NAME)(PROMPTS))
        return cls(clip, F.normalize(texts, dim=-1))

    def embed(self, pixels: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        embedding: Tensor = self.clip.encode_image((pixels - mean) / std)
        return embedding

    def logits(self, pixels: Tensor) -> Tensor:
        scores: Tensor = self.clip.logit_scale.exp() * F.normalize(self.embed(pixels), dim=-1) @ self.texts.T
        return scores


def write_weights(folder: Path, config: dict[str, Any] | None = None) -> None:
    """Write random weights with open_clip alone, in its folder layout; every bias and gain away from 0 and 1.

    Of ViT-B/32, unless open_clip's configuration of another CLIP is given.
    """
    config = config or open_clip.get_model_config(NAME)
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(0)
        clip = open_clip.CLIP(**config)
        with torch.no_grad():
            for parameter in clip.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.02 * torch.randn_like(parameter))
            clip.logit_scale.fill_(math.log(100))
    save_file(
        {name: value.contiguous() for name, value in clip.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    side = config["vision_cfg"]["image_size"]
    preprocessing = {"size": side, "mode": "RGB", "mean": MEAN, "std": STD, "interpolation": "bicubic"}
    whole = {"model_cfg": config, "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(whole))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep open_clip from warning that the weights are random."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def natural_like(count: int, side: int, seed: int) -> Tensor:
    """Make images with the spectrum of photographs (amplitude falls as 1/frequency), `[count, 3, side, side]`."""
    noise = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
    squares = torch.fft.fftfreq(side).square()
    falloff = (squares[:, None] + squares[None, :]).sqrt().clamp(min=1 / side)
    images: Tensor = torch.fft.ifft2(torch.fft.fft2(noise) / falloff).real
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (images - low) / (high - low)


def gradient(logits: Callable[[Tensor], Tensor], pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the input gradient of the summed cross-entropy, and the logits."""
    leaf = pixels.clone().requires_grad_(True)
    scores = logits(leaf)
    (found,) = torch.autograd.grad(F.cross_entropy(scores, labels, reduction="sum"), leaf)
    return found, scores.detach()


def worst_share(found: Tensor, expected: Tensor) -> float:
    """Return ‖difference‖ / ‖expected‖ of the worst sample."""
    lengths = torch.linalg.vector_norm(expected.double().flatten(1), dim=1)
    return float((torch.linalg.vector_norm((found.double() - expected.double()).flatten(1), dim=1) / lengths).max())


@item(
    "vit_b32_equal",
    claims=[
        Claim(
            "logits_on",
            "ViT-B-32, random weights: logits equal stock's in float32, fast path on (largest difference)",
            at_most(1e-4),
        ),
        Claim("logits_off", "… fast path off", at_most(1e-4)),
        Claim(
            "gradients_on", "input gradients, fast path on: ‖difference‖/‖gradient‖ of the worst of 256", at_most(1e-4)
        ),
        Claim("gradients_off", "… fast path off", at_most(1e-4)),
        Claim("bfloat16", "bfloat16 embeddings: smallest cosine to stock's", at_least(0.999)),
    ],
    modules=["ironclip.models.sources"],
)
def vit_b32_equal(context: Context) -> Iterator[Figure]:
    count = context.pick(256, 8)
    batch = min(BATCH, count)
    logit_gap, gradient_gap = {True: 0.0, False: 0.0}, {True: 0.0, False: 0.0}
    cosine, spread = 1.0, 0.0
    with TemporaryDirectory() as folder:
        write_weights(Path(folder))
        stock = StockModel.load(Path(folder))
        ours = {fast: load_model(f"local-dir:{folder}", fast=fast).requires_grad_(False) for fast in (True, False)}
        if (ours[True].fast_path, ours[False].fast_path) != ("on", "switched off"):
            raise ArithmeticError(f"the fast path is {ours[True].fast_path}")
        classes = {fast: model.text_features(PROMPTS).detach() for fast, model in ours.items()}
        for start in range(0, count, batch):
            pixels = natural_like(batch, 224, seed=start)
            labels = torch.arange(start, start + batch) % len(PROMPTS)
            expected, scores = gradient(stock.logits, pixels, labels)
            spread = max(spread, float(scores.std(dim=1).max()))
            for fast, model in ours.items():
                found, logits = gradient(_logits(model, classes[fast]), pixels, labels)
                logit_gap[fast] = max(logit_gap[fast], float((logits - scores).abs().max()))
                gradient_gap[fast] = max(gradient_gap[fast], worst_share(found, expected))
            with torch.no_grad(), ours[True].computing(torch.bfloat16):
                cosines = F.cosine_similarity(ours[True].embed_image(pixels), stock.embed(pixels))
            cosine = min(cosine, float(cosines.min()))
    about = f"{count} images"
    scale = f"logit scale 100, deviation of an image's logits up to {spread:.2g}"
    yield Figure("logits_on", logit_gap[True], f"{logit_gap[True]:.1e} ({about}; {scale})")
    yield Figure("logits_off", logit_gap[False], f"{logit_gap[False]:.1e} ({about})")
    yield Figure("gradients_on", gradient_gap[True], f"{gradient_gap[True]:.1e} ({about})")
    yield Figure("gradients_off", gradient_gap[False], f"{gradient_gap[False]:.1e} ({about})")
    yield Figure("bfloat16", cosine, f"{cosine:.6f} ({about})")


def _logits(model: CLIPModel, classes: Tensor) -> Callable[[Tensor], Tensor]:
    def score(pixels: Tensor) -> Tensor:
        return model.logit_scale * model.image_features(pixels) @ classes.T

    return score


@item(
    "vit_b32_speed",
    claims=[
        Claim(
            "float32",
            "ViT-B-32, batch 32, forward + input gradient: times as fast as stock float32",
            at_least(2.2, "x"),
        ),
        Claim("autocast", "… as stock under bfloat16 autocast", at_least(2.4, "x")),
        # A share above 100 % would mean that the peak was measured wrongly.
        Claim("share", "… share of the machine's measured bfloat16 peak", Bound(at_least=75, at_most=100, unit="%")),
    ],
    modules=["ironclip.models.sources", "benchmarks.vision_speed"],
)
def vit_b32_speed(context: Context) -> Iterator[Figure]:
    if context.short:
        raise CannotRunError("the short form times nothing: it runs beside other work")
    with TemporaryDirectory() as folder:
        write_weights(Path(folder))
        speed = measure(load_model(f"local-dir:{folder}"), StockModel.load(Path(folder)).clip.visual, batch=BATCH)
    ours = f"{speed.fast:.2f} s against"
    medians = f"medians of {speed.rounds}, load {speed.load:.1f}"
    yield Figure(
        "float32", speed.over_float32, f"{speed.over_float32:.2f} x ({ours} {speed.stock_float32:.2f} s, {medians})"
    )
    yield Figure("autocast", speed.over_autocast, f"{speed.over_autocast:.2f} x ({ours} {speed.stock_autocast:.2f} s)")
    rate, peak = speed.operations / speed.fast, speed.peak
    shape = " x ".join(map(str, speed.peak_shape))
    counted = f"{speed.operations / 1e9:.1f} GFLOP counted, {rate / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s ({shape})"
    yield Figure("share", 100 * speed.share, f"{100 * speed.share:.0f} %: {counted}")
