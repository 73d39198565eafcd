"""How long counted work takes: at a stated peak, or as this machine runs the very towers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ironclip.attacks.objectives import EmbeddingDistance, frozen
from ironclip.attacks.pgd import TrainingPGD
from ironclip.attacks.threat_model import ThreatModel
from ironclip.machine import matrix_rate
from ironclip.models.clip import CLIPModel
from ironclip.randomness import SampleRandom
from ironclip.training.cost_models import random_model
from ironclip.training.cost_passes import Pass
from ironclip.training.cost_towers import Gradients, Tower
from ironclip.training.optimisation import build_optimiser
from ironclip.training.recipe import OptimisationSection

WIDE_SHARE = 0.76
"""Share of the matrix peak that ViT-B/32 reaches, forward and input gradient, width 768: docs/results/speed.json."""

WIDTH_OF_SHARE = 768
SLOW_WIDTH = 80
"""What is no product takes as long a token as products of this width do, so that narrow towers reach less: `tiny`, of
width 192, was measured at 0.58 of the peak in a first sketch of its fast path."""

FLOAT32_SHARE = 67 / 989
"""Of a float32 product against a bfloat16 one, without TF32: the data sheet of the H200."""

OPERATIONS_A_BYTE = 200
"""Operations at the peak in the time that one byte of memory takes: 989 TFLOP/s and 4.8 TB/s of the H200."""

LARGEST = 2e11
"""Operations of a pass that is timed, at most; some tenths of a second on a few cores."""

_SECONDS = 0.3
_DTYPES = {16: torch.bfloat16, 32: torch.float32, 64: torch.float64}
_START, _END = 49406, 49407  # of CLIP's tokenizer


class Rates(Protocol):
    """What says how long work takes."""

    def seconds(self, seen: Pass, tower: Tower, operations: float, rows: float) -> float:
        """Return how long the operations of a pass take that runs on so many rows at a time."""
        ...

    def updating(self, parameters: int, bytes_each: int, settings: OptimisationSection) -> float:
        """Return how long the optimiser's step takes, and what is done to each parameter beside it."""
        ...

    def assumed(self) -> list[str]:
        """Return what these rates rest on, a line each."""
        ...


def share_of_peak(width: int) -> float:
    """Return the share of the matrix peak that a tower of this width is taken to reach."""
    return WIDE_SHARE * (1 + SLOW_WIDTH / WIDTH_OF_SHARE) / (1 + SLOW_WIDTH / width)


@dataclass(frozen=True)
class StatedRates:
    """Rates at a peak that somebody gives, operations a second of bfloat16 products."""

    peak: float

    def seconds(self, seen: Pass, tower: Tower, operations: float, rows: float) -> float:
        """Return operations over the share of the peak."""
        rate = self.peak * share_of_peak(tower.width) * (1 if seen.bits == 16 else FLOAT32_SHARE)
        return operations / rate

    def updating(self, parameters: int, bytes_each: int, settings: OptimisationSection) -> float:
        """Return the bytes over the bandwidth that goes with the peak."""
        return parameters * bytes_each * OPERATIONS_A_BYTE / self.peak

    def assumed(self) -> list[str]:
        """Name the shares."""
        return [
            f"peak: {self.peak / 1e12:.4g} TFLOP/s of bfloat16 products, as given; towers reach {WIDE_SHARE:.0%} of it "
            f"at width {WIDTH_OF_SHARE}, {share_of_peak(192):.0%} at width 192 (measured on a CPU)",
            f"float32 products run at {FLOAT32_SHARE:.1%} of it, a byte of memory takes {OPERATIONS_A_BYTE} operations",
        ]


@dataclass
class MeasuredRates:
    """Rates of this machine: each kind of pass is timed once, on the architecture itself with random weights.

    Attributes:
        architecture: open_clip's configuration.
        device: Where to compute.
        found: Operations a second of what was timed, and a line about it.
    """

    architecture: Mapping[str, Any]
    device: str = "cpu"
    found: dict[tuple[object, ...], float] = field(default_factory=dict)
    _model: CLIPModel | None = None

    def seconds(self, seen: Pass, tower: Tower, operations: float, rows: float) -> float:
        """Time such a pass on at most so many rows, and scale it."""
        kind = Gradients.PIXELS if seen.gradients in (Gradients.INSIDE, Gradients.ADAPTERS) else seen.gradients
        if seen.tower == "text" and kind is Gradients.PIXELS:
            kind = Gradients.WEIGHTS
        tokens = seen.tokens if seen.tower == "text" else None
        key = (seen.tower, kind, tokens, seen.bits)
        if key not in self.found:
            one = tower.operations(kind, tokens=tokens)
            count = max(1, min(round(rows), round(LARGEST / one), 256))
            model = self._loaded()
            dtype = _DTYPES[seen.bits]
            run = _image_pass(model, kind, count) if tokens is None else _text_pass(model, kind, count, tokens)
            with model.computing(dtype):
                self.found[key] = one * count * run.passes / _median_seconds(run.call, self.device)
        return operations / self.found[key]

    def updating(self, parameters: int, bytes_each: int, settings: OptimisationSection) -> float:
        """Time the optimiser on some millions of numbers."""
        count = max(1, min(parameters, 1 << 22))
        parameter = nn.Parameter(torch.zeros(count, device=self.device))
        optimiser = build_optimiser([parameter], settings)

        def step() -> None:
            parameter.grad = torch.ones_like(parameter)
            nn.utils.clip_grad_norm_([parameter], 1.0)
            optimiser.step()
            parameter.to(torch.bfloat16)

        return _median_seconds(step, self.device) * parameters / count

    def assumed(self) -> list[str]:
        """Name the rates that were measured, beside the peak."""
        peak = matrix_rate(torch.bfloat16, device=self.device)
        best = max(self.found.values(), default=0.0)
        return [
            f"measured on {self.device}, {torch.get_num_threads()} threads: bfloat16 products "
            f"{peak / 1e9:.0f} GFLOP/s; the towers, random weights, up to {best / 1e9:.0f} GFLOP/s",
            "whatever else runs on this machine slowed down what was measured",
        ]

    def _loaded(self) -> CLIPModel:
        if self._model is None:
            self._model = random_model(self.architecture).to(self.device)
        return self._model


@dataclass(frozen=True)
class _Timed:
    """Something to be timed, which does a pass so many times."""

    call: Callable[[], object]
    passes: int = 1


def _image_pass(model: CLIPModel, gradients: Gradients, count: int) -> _Timed:
    """Make a pass over images; with input gradients two steps of PGD, whose own arithmetic counts in."""
    side = model.input_resolution
    pixels = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)).to(model.device)
    model.requires_grad_(False)
    if gradients is Gradients.PIXELS:
        attack, threat = TrainingPGD(steps=2), ThreatModel(norm="linf", eps="4/255")
        with torch.no_grad():
            objective = EmbeddingDistance(model, torch.zeros_like(model.embed_image(pixels)))
        random = SampleRandom(0, [str(row) for row in range(count)])
        return _Timed(lambda: attack.perturb(objective, pixels, threat, random), passes=attack.steps)
    return _Timed(lambda: _differentiated(model, model.visual, lambda: model.embed_image(pixels), gradients))


def _text_pass(model: CLIPModel, gradients: Gradients, count: int, tokens: int) -> _Timed:
    """Make a pass over texts that end at the last of so many tokens."""
    ids = torch.zeros(count, model.tokenize(["a"]).shape[1], dtype=torch.int64, device=model.device)
    ids[:, 0], ids[:, 1:tokens], ids[:, tokens - 1] = _START, 320, _END
    model.requires_grad_(False)
    return _Timed(lambda: _differentiated(model, model.clip, lambda: model.embed_text(ids), gradients))


def _differentiated(model: CLIPModel, tuned: nn.Module, embed: Callable[[], Tensor], gradients: Gradients) -> None:
    if gradients is Gradients.NONE:
        with torch.no_grad(), frozen([model]):
            embed()
        return
    tuned.requires_grad_(True)
    embed().square().sum().backward()
    tuned.zero_grad(set_to_none=True)
    tuned.requires_grad_(False)


def _median_seconds(run: Callable[[], object], device: str) -> float:
    """Time it at least three times after once for warming up, and some tenths of a second in all."""
    run()
    times: list[float] = []
    while len(times) < 3 or sum(times) < _SECONDS:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        run()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]
