"""How fast the towers are: forward and input gradient of images, forward of texts, against stock open_clip."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ironclip.benchmarking.measuring import Shape, best_product, in_turns, product_runs, timed
from ironclip.errors import ConfigError
from ironclip.machine import SQUARE
from ironclip.models.clip import CLIPModel
from ironclip.training.cost_towers import Gradients, image_sizes


@dataclass(frozen=True)
class Speed:
    """What was measured of an image tower; times in seconds for one batch, rates in operations a second.

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
    peak_shape: Shape
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


@dataclass(frozen=True)
class TextSpeed:
    """What was measured of a text tower, without gradients; seconds for all texts.

    Attributes:
        texts: Class prompts at a time.
        rounds: Times that each was measured.
        stock_float32: Stock open_clip.
        ours: `CLIPModel.embed_text` in float32, as class prompts are encoded.
    """

    texts: int
    rounds: int
    stock_float32: float
    ours: float


def check_served(model: CLIPModel) -> None:
    """Refuse a model whose image tower has no fast path, and so neither a count nor a grid.

    Raises:
        ConfigError: It has none; says why.
    """
    if not model.kernels_offered:
        raise ConfigError(
            f"the fast path does not serve the image tower of {model.spec.origin}: {model.fast_path}.",
            "Give a vision transformer of open_clip, with its fast path on.",
        )


def product_shapes(tower: Any, batch: int) -> list[Shape]:
    """Return the fixed grid (rows, inner, columns): a square, and the products of an image tower, there and back.

    Args:
        tower: open_clip's vision transformer.
        batch: Images.
    """
    tokens, _ = tower.positional_embedding.shape
    block = tower.transformer.resblocks[0]
    weights = (block.attn.in_proj_weight, block.attn.out_proj.weight, block.mlp.c_fc.weight, block.mlp.c_proj.weight)
    own = {(batch * tokens, *weight.shape) for weight in weights}
    own |= {(batch * (tokens - 1), *tower.conv1.weight.flatten(1).shape)}
    return [SQUARE, *sorted(own | {(rows, columns, inner) for rows, inner, columns in own})]


def measure(model: CLIPModel, stock: nn.Module, *, batch: int = 32, rounds: int = 5) -> Speed:
    """Measure an image tower against a stock tower of the same weights, where the model lies.

    Args:
        model: Ours, with its fast path on; its parameters are frozen.
        stock: open_clip's image tower; likewise.
        batch: Images at a time, at the tower's own resolution.
        rounds: How often each is measured, after one round that does not count.

    Raises:
        ConfigError: The fast path does not serve the tower.
    """
    check_served(model)
    load = os.getloadavg()[0]
    device = str(model.device)
    model.requires_grad_(False)
    stock.requires_grad_(False).eval()
    preprocessing = model.spec.preprocessing
    side = preprocessing.resolution
    pixels = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    mean, std = (
        torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std)
    )

    def embed_stock(x: Tensor) -> Tensor:
        embedding: Tensor = stock((x - mean) / std)
        return embedding

    def run_autocast() -> None:
        with torch.autocast(model.device.type, torch.bfloat16):
            differentiate(embed_stock, pixels)

    def run_fast() -> None:
        with model.computing(torch.bfloat16):
            differentiate(model.embed_image, pixels)

    products = product_runs(product_shapes(model.visual, batch), torch.bfloat16, device)
    runs: dict[Any, Callable[[], float]] = {
        "stock_float32": lambda: timed(lambda: differentiate(embed_stock, pixels), device),
        "stock_autocast": lambda: timed(run_autocast, device),
        "fast": lambda: timed(run_fast, device),
    }
    medians = in_turns(runs | products, rounds)
    peak = best_product({name: medians[name] for name in products}, torch.bfloat16)
    operations = int(image_sizes(model.visual).operations(Gradients.PIXELS, rows=batch))
    seconds = {name: medians[name] for name in runs}
    return Speed(batch, rounds, **seconds, operations=operations, peak=peak.rate, peak_shape=peak.shape, load=load)


def measure_texts(model: CLIPModel, prompts: list[str], *, rounds: int = 5) -> TextSpeed:
    """Measure the text tower on class prompts, without gradients, against stock open_clip on the same weights."""
    ids, device = model.tokenize(prompts), str(model.device)
    with torch.no_grad():
        medians = in_turns(
            {
                "stock_float32": lambda: timed(lambda: model.clip.encode_text(ids), device),
                "ours": lambda: timed(lambda: model.embed_text(ids), device),
            },
            rounds,
        )
    return TextSpeed(len(prompts), rounds, **medians)


def differentiate(embed: Callable[[Tensor], Tensor], pixels: Tensor) -> None:
    """Pass images forward and take the gradient of their pixels, as an attack's step does."""
    leaf = pixels.clone().requires_grad_(True)
    torch.autograd.grad(embed(leaf).float().square().sum(), leaf)
