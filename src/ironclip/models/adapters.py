"""R-Adapter's adapters: one linear map after each branch of each block, which the weights can swallow.

After the attention and after the MLP of every block, in both towers, with rows as vectors,

    h(X) = X W + X,   W [d, d], or W = B A with B [d, r], A [r, d];   W = 0 at the start, no bias.

Since the branch ends in a linear layer, W_rep = W_org (W + I) and b_rep = b_org (W + I) give the same without h. In
training h(X) = g / (1 - p) X W + X with one draw g of Bernoulli(1 - p) a sample and adapter.

Source: Kim et al., ECCV 2024, arXiv:2408.05749. Our reading: A ~ N(0, 1 / r), B = 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ironclip.errors import ConfigError
from ironclip.models.prompts import text_tower
from ironclip.randomness import SampleRandom

if TYPE_CHECKING:
    from ironclip.models.clip import CLIPModel


class Adapter(nn.Module):
    """One map; its `product` is W.

    Args:
        width: d.
        rank: r, or None for a full map.
    """

    def __init__(self, width: int, rank: int | None) -> None:
        super().__init__()
        self.outer = nn.Parameter(torch.zeros(width, width if rank is None else rank))
        self.inner = None if rank is None else nn.Parameter(torch.zeros(rank, width))

    @property
    def product(self) -> Tensor:
        """W, `[d, d]`."""
        return self.outer if self.inner is None else self.outer @ self.inner


class TowerAdapters(nn.Module):
    """The adapters of one tower.

    Attributes:
        gates: g / (1 - p), `[B, layers, 2]`, inside `Adapters.dropping`; else None, and nothing is dropped.
    """

    def __init__(self, layers: int, width: int, rank: int | None) -> None:
        super().__init__()
        self.attention = nn.ModuleList(Adapter(width, rank) for _ in range(layers))
        self.mlp = nn.ModuleList(Adapter(width, rank) for _ in range(layers))
        self.gates: Tensor | None = None

    def products(self) -> list[tuple[Tensor, Tensor]]:
        """Return W after the attention and W after the MLP, a block."""
        return [
            (self._product(first), self._product(second))
            for first, second in zip(self.attention, self.mlp, strict=True)
        ]

    @staticmethod
    def _product(adapter: nn.Module) -> Tensor:
        product: Tensor = adapter.product  # type: ignore[assignment]  # a ModuleList forgets what it holds
        return product


class Adapters(nn.Module):
    """The adapters of both towers.

    Args:
        image_size: Layers and width of the image tower.
        text_size: Layers and width of the text tower.
        rank: r, or None for full maps.

    Raises:
        ConfigError: The rank is below 1.

    Attributes:
        drop: p in training, 0 or more and below 1; not saved.
    """

    def __init__(self, image_size: tuple[int, int], text_size: tuple[int, int], rank: int | None = None) -> None:
        super().__init__()
        if rank is not None and rank < 1:
            raise ConfigError(f"adapters of rank {rank}.", "Give a rank of at least 1, or none for full maps.")
        self.rank, self.drop = rank, 0.0
        self.image = TowerAdapters(*image_size, rank)
        self.text = TowerAdapters(*text_size, rank)

    @classmethod
    def drawn(cls, model: CLIPModel, rank: int | None, seed: int) -> Adapters:
        """Make adapters for a model that change nothing yet; A is drawn from the seed."""
        adapters = cls(*tower_sizes(model.clip), rank)
        random = SampleRandom(seed, ["adapters"])
        with torch.no_grad():
            for name, parameter in adapters.named_parameters():
                if name.endswith(".inner"):
                    parameter.copy_(random.normal(parameter.shape, name)[0] * len(parameter) ** -0.5)
        return adapters

    @contextmanager
    def dropping(self, random: SampleRandom) -> Iterator[None]:
        """Drop adapters inside the block, for passes of one row a key of `random`; nothing where `drop` is 0."""
        if not self.drop:
            yield
            return
        device = next(self.parameters()).device
        for purpose, tower in (("drop image", self.image), ("drop text", self.text)):
            kept = random.uniform((len(tower.attention), 2), 0, 1, purpose) >= self.drop
            tower.gates = (kept.float() / (1 - self.drop)).to(device)
        try:
            yield
        finally:
            self.image.gates = self.text.gates = None


def rescaled(name: str, parameter: Tensor, scale: float) -> Tensor:
    """Return a parameter of adapters as it is where every W is scaled: A stays, so that B A is scaled once."""
    return parameter if name.endswith(".inner") else scale * parameter


def adapt(branch: Tensor, product: Tensor, gate: Tensor | None) -> Tensor:
    """Apply h to what a branch gives, `[B, T, d]`; `gate` `[B]` scales the map of each row."""
    mapped = branch @ product.to(branch.dtype)
    return branch + (mapped if gate is None else gate.to(branch.dtype)[:, None, None] * mapped)


def merged(weight: Tensor, bias: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight `[d, k]` and bias `[d]` of the linear layer that swallowed an adapter; at least float32."""
    return weight + product.T @ weight, bias + bias @ product


@torch.no_grad()
def merge_adapters(model: CLIPModel) -> None:
    """Let the weights swallow a model's adapters, in place; the model is then an ordinary one.

    Raises:
        ConfigError: It has none.
    """
    adapters = model.adapters
    if adapters is None:
        raise ConfigError("this model has no adapters to merge.", "Give the folder of a run that tuned adapters.")
    towers = ((model.clip.visual, adapters.image), (text_tower(model.clip), adapters.text))
    for tower, maps in towers:
        for block, products in zip(tower.transformer.resblocks, maps.products(), strict=True):
            for layer, product in zip((block.attn.out_proj, block.mlp.c_proj), products, strict=True):
                for parameter, value in zip(
                    (layer.weight, layer.bias), merged(layer.weight, layer.bias, product), strict=True
                ):
                    parameter.copy_(value)
    model.detach("adapters")


def tower_sizes(clip: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return layers and width of the image tower and of the text tower."""
    visual, text = clip.visual, text_tower(clip)
    image = (len(visual.transformer.resblocks), int(visual.class_embedding.shape[0]))
    return image, (len(text.transformer.resblocks), int(text.token_embedding.weight.shape[1]))
