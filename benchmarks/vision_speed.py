"""How fast the image tower is: forward and input gradient, against stock open_clip and against the machine.

    python -m benchmarks.vision_speed [--model ViT-B-32] [--batch 32] [--rounds 5]

Everything is measured in one run, in rounds that take turns, so that a machine that slows down slows all of it; times
are medians. The floor is the counted operations over the machine's own bfloat16 rate: the best of a fixed grid of
products, 4096 x 4096 x 4096 and the tower's own shapes. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ironclip.machine import describe_machine
from ironclip.models.clip import CLIPModel
from ironclip.models.sources import load_model

SQUARE = (4096, 4096, 4096)
OPERATIONS_A_ROUND = 100e9
"""So many operations of one shape are timed together in a round: as long as a layer or two of the tower takes."""


@dataclass(frozen=True)
class Speed:
    """What was measured; times in seconds for one batch, rates in operations a second.

    Attributes:
        batch: Images at a time.
        rounds: Times that each was measured.
        stock_float32: Stock open_clip, forward and input gradient.
        stock_autocast: The same under bfloat16 autocast.
        fast: Our fast path in bfloat16.
        operations: Of one batch, counted; a multiplication and an addition are two.
        peak: Best rate of a bfloat16 product: the largest of the shapes' medians.
        peak_shape: Rows, inner size and columns of that product.
        load: Of the machine when it began (processes that wanted to run); near 0 where it was idle.
    """

    batch: int
    rounds: int
    stock_float32: float
    stock_autocast: float
    fast: float
    operations: int
    peak: float
    peak_shape: tuple[int, int, int]
    load: float

    @property
    def over_float32(self) -> float:
        """How many times as fast as stock float32."""
        return self.stock_float32 / self.fast

    @property
    def over_autocast(self) -> float:
        """How many times as fast as stock under autocast."""
        return self.stock_autocast / self.fast

    @property
    def share(self) -> float:
        """Counted operations a second over the peak; above 1 the peak was measured wrongly."""
        return self.operations / self.fast / self.peak


def matrix_operations(tower: Any, batch: int) -> int:
    """Count the operations in matrix products of a forward and an input gradient of open_clip's vision transformer.

    What has to be multiplied for the embedding: one product for the patches, all tokens in all layers but the last, of
    which only keys and values are needed of every token.
    """
    tokens, width = tower.positional_embedding.shape
    linear = (tokens - 1) * tower.conv1.weight.numel() + tower.proj.numel()
    attention = 0
    blocks = tower.transformer.resblocks
    for block in blocks:
        own = sum(w.numel() for w in (block.attn.out_proj.weight, block.mlp.c_fc.weight, block.mlp.c_proj.weight))
        queries = 1 if block is blocks[-1] else tokens
        linear += queries * (own + width * width) + tokens * 2 * width * width
        attention += 2 * queries * tokens * width  # scores, and values mixed by them; the heads share the width
    # The gradient of a product with weights is one more product, that of a product of two activations two more.
    return int(2 * batch * (2 * linear + 3 * attention))


def product_shapes(tower: Any, batch: int) -> list[tuple[int, int, int]]:
    """Return the fixed grid (rows, inner, columns): a square, and the products of the tower forward and backward."""
    tokens, _ = tower.positional_embedding.shape
    block = tower.transformer.resblocks[0]
    weights = (block.attn.in_proj_weight, block.attn.out_proj.weight, block.mlp.c_fc.weight, block.mlp.c_proj.weight)
    own = {(batch * tokens, *weight.shape) for weight in weights}
    own |= {(batch * (tokens - 1), *tower.conv1.weight.flatten(1).shape)}
    return [SQUARE, *sorted(own | {(rows, columns, inner) for rows, inner, columns in own})]


def product_rate(shape: tuple[int, int, int]) -> float:
    """Measure the rate of a bfloat16 product `[rows, inner] x [inner, columns]`, operations a second."""
    rows, inner, columns = shape
    left, weight = torch.randn(rows, inner).bfloat16(), torch.randn(columns, inner).bfloat16()
    operations = 2 * rows * inner * columns
    repeats = max(1, round(OPERATIONS_A_ROUND / operations))
    F.linear(left, weight)

    def products() -> None:
        for _ in range(repeats):
            F.linear(left, weight)

    return repeats * operations / _timed(products)


def measure(model: CLIPModel, stock: nn.Module, *, batch: int = 32, rounds: int = 5) -> Speed:
    """Measure a model against a stock tower of the same weights, on the CPU.

    Args:
        model: Ours, with its fast path on.
        stock: open_clip's image tower.
        batch: Images at a time, at the tower's own resolution.
        rounds: How often each is measured, after one round that does not count.
    """
    if model.fast_path != "on":
        raise SystemExit(f"the fast path does not serve this tower: {model.fast_path}")
    load = os.getloadavg()[0]
    model.requires_grad_(False)
    stock.requires_grad_(False).eval()
    preprocessing = model.spec.preprocessing
    side = preprocessing.resolution
    pixels = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std))

    def embed_stock(x: Tensor) -> Tensor:
        embedding: Tensor = stock((x - mean) / std)
        return embedding

    def run_autocast() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            _gradient(embed_stock, pixels)

    def run_fast() -> None:
        with model.computing(torch.bfloat16):
            _gradient(model.embed_image, pixels)

    runs = {"stock_float32": lambda: _gradient(embed_stock, pixels), "stock_autocast": run_autocast, "fast": run_fast}
    times: dict[str, list[float]] = {name: [] for name in runs}
    shapes = product_shapes(model.visual, batch)
    rates: dict[tuple[int, int, int], list[float]] = {shape: [] for shape in shapes}
    for number in range(rounds + 1):
        for name, run in runs.items():
            seconds = _timed(run)
            if number:
                times[name].append(seconds)
        for shape in shapes:
            rate = product_rate(shape)
            if number:
                rates[shape].append(rate)
    peaks = {shape: statistics.median(found) for shape, found in rates.items()}
    best = max(peaks, key=lambda shape: peaks[shape])
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    operations = matrix_operations(model.visual, batch)
    return Speed(batch, rounds, **medians, operations=operations, peak=peaks[best], peak_shape=best, load=load)


def _gradient(embed: Callable[[Tensor], Tensor], pixels: Tensor) -> None:
    leaf = pixels.clone().requires_grad_(True)
    torch.autograd.grad(embed(leaf).float().square().sum(), leaf)


def _timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="ViT-B-32", help="an architecture of open_clip")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model = load_model(f"open_clip:{options.model}/random?seed=0")
    stock = open_clip.create_model(options.model)
    stock.load_state_dict(model.clip.state_dict())
    speed = measure(model, stock.visual, batch=options.batch, rounds=options.rounds)
    ratios = {"over_float32": speed.over_float32, "over_autocast": speed.over_autocast, "share": speed.share}
    machine = describe_machine(Path())
    rounded = {name: float(f"{value:.4g}") for name, value in ratios.items()}
    about = {"processor": machine.processor, "threads": machine.threads, "torch": machine.torch}
    print(json.dumps({"benchmark": "vision_speed", "model": options.model, **asdict(speed), **rounded, **about}))


if __name__ == "__main__":
    main()
