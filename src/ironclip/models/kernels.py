"""Which kernels the image tower runs on, chosen by measuring where the machine is not known beforehand.

On the CPU the choice is fixed: a choice that noise can turn would turn the last bits of results with it, and batched
products lead there in bfloat16, in which searches run. On CUDA kernels differ from card to card and release to release,
so they are measured at the start; `CLIPModel.fast_path` tells which were chosen (decision 013).
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ironclip.models.clip import CLIPModel, Kernels

logger = logging.getLogger(__name__)

CANDIDATES: tuple[Kernels, ...] = ("products", "fused", "stock")
"""Measured unless asked otherwise. "compiled" is left out: compiling takes longer than most evaluations gain."""

HYSTERESIS = 0.1
"""Another candidate has to save this share of the first one's time."""

ROUNDS = 5

Timer = Callable[[Callable[[], object]], float]
"""Runs something and returns seconds."""


def choose_kernels(
    model: CLIPModel,
    tile: int,
    dtype: torch.dtype,
    *,
    candidates: Sequence[Kernels] = CANDIDATES,
    timer: Timer | None = None,
) -> Kernels | None:
    """Let a model run on the kernels that are fastest here, for a forward pass and its input gradient.

    Args:
        model: Its kernels are set (`CLIPModel.use_kernels`).
        tile: Images a pass.
        dtype: Precision of the passes that are many.
        candidates: What is compared; the first stays unless another is faster by a tenth.
        timer: Seconds of a run. Without one, CUDA is measured and every other device left as it is.

    Returns:
        The choice, or None where nothing was measured: not on CUDA, or without the fast path.
    """
    if not model.kernels_offered or (timer is None and model.device.type != "cuda"):
        return None
    seconds = measure_kernels(model, tile, dtype, candidates=candidates, timer=timer or _cuda_timer(model.device))
    chosen = fastest(seconds)
    model.use_kernels(chosen)
    told = ", ".join(f"{name} {value:.3g} s" for name, value in seconds.items())
    logger.info("image tower, %d images: %s; chosen: %s.", tile, told, chosen)
    return chosen


def measure_kernels(
    model: CLIPModel, tile: int, dtype: torch.dtype, *, candidates: Sequence[Kernels] = CANDIDATES, timer: Timer
) -> dict[Kernels, float]:
    """Measure a forward pass and its input gradient: median seconds a candidate.

    Candidates take turns, after one run that does not count, so that a machine that slows down slows all of them. What
    the model cannot run on (`CLIPModel.kernels_offered`) is left out. The model is left on its first candidate.
    """
    offered = [name for name in candidates if name in model.kernels_offered]
    side = model.input_resolution
    pixels = torch.rand(tile, 3, side, side, generator=torch.Generator().manual_seed(0)).to(model.device)
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    times: dict[Kernels, list[float]] = {name: [] for name in offered}

    def run() -> Tensor:
        leaf = pixels.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(model.embed_image(leaf).square().sum(), leaf)
        return gradient

    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad(), model.computing(dtype):
            for number in range(ROUNDS + 1):
                for name in offered:
                    model.use_kernels(name)
                    seconds = timer(run)
                    if number:
                        times[name].append(seconds)
    finally:
        model.use_kernels(offered[0])
        for parameter in asked:
            parameter.requires_grad_(True)
    return {name: statistics.median(several) for name, several in times.items()}


def fastest(seconds: Mapping[Kernels, float]) -> Kernels:
    """Choose the fastest; the first, where none saves a tenth of its time."""
    first, best = next(iter(seconds)), min(seconds, key=lambda name: seconds[name])
    return best if seconds[best] <= (1 - HYSTERESIS) * seconds[first] else first


def _cuda_timer(device: torch.device) -> Timer:
    """Return a timer of a GPU, to the end of what a run has queued there."""

    def timer(run: Callable[[], object]) -> float:
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        run()
        torch.cuda.synchronize(device)
        return time.perf_counter() - began

    return timer
