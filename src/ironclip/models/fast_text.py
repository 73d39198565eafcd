"""The fast path of CLIP's text tower: as many positions as a text has, on low-precision working weights.

The tower is causal and read off the end token, so nothing behind that token matters, and of the last block nobody reads
another token. Most prompts need 8 or 16 of the 77 positions.

- A text runs at its own length rounded up to a multiple of 8, with the texts of that length only, and their rows are
  filled up to a multiple of 16: its bits hang on no other text of the call, wherever rows of a product are independent
  (decision 013).
- The table of token embeddings is read, not copied, by one look-up for all lengths: each look-up has a gradient as
  large as the table.
- Learned words stand in their places of every layer that has some; adapters as in the image tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from ironclip.models.adapters import TowerAdapters
from ironclip.models.fast_blocks import (
    Affine,
    TowerWeights,
    cast,
    layer_norm,
    pack_blocks,
    run_block,
    why_not_blocks,
)
from ironclip.models.prompts import Prompts, text_tower
from ironclip.models.working_copies import FastTower

STEP = 8
"""Texts run at multiples of this length."""

ROWS = 16
"""Rows of a pass are a multiple of this: below it, matrix products choose other kernels (`attacks.driver.GRANULE`)."""


def why_not_text(clip: nn.Module) -> str | None:
    """Say why the fast path does not serve a model's text tower, or None if it does."""
    text = text_tower(clip)
    if not isinstance(text, open_clip.CLIP | TextTransformer):
        return f"{type(text).__name__} is not open_clip's text transformer"
    # CLIP itself names the pooling otherwise than the tower that is a module of its own.
    pooling = getattr(text, "text_pool_type", getattr(text, "pool_type", "argmax"))
    if pooling != "argmax" or getattr(text, "cls_emb", None) is not None:
        return "its text tower does not read the end token"
    if text.attn_mask is None:
        return "its text tower is not causal"
    return why_not_blocks(text.transformer)


@dataclass(frozen=True, kw_only=True)
class TextWeights(TowerWeights):
    """The text tower in one precision, token embeddings apart.

    Attributes:
        positions: `[L, W]`.
        ln_final: The last norm.
        projection: `[W, D]`, or None for a tower without.
        projection_bias: `[D]`, or None.
    """

    positions: Tensor
    ln_final: Affine
    projection: Tensor | None
    projection_bias: Tensor | None


def make_room(ids: Tensor, length: int) -> Tensor:
    """Move texts `[N, L]` back by `length` places after their start token; the end token stays, whatever is cut."""
    if not length:
        return ids
    moved = torch.cat([ids[:, :1], ids.new_zeros(len(ids), length), ids[:, 1 : ids.shape[1] - length]], dim=1)
    end = ids.amax(dim=1)
    cut = moved.amax(dim=1) != end
    moved[cut, -1] = end[cut]
    return moved


def passes(ends: Tensor, context: int) -> list[tuple[int, Tensor]]:
    """Divide texts into passes by their lengths.

    Args:
        ends: Position of each text's end token, `[N]`.
        context: The tower's L.

    Returns:
        Length of each pass, and the texts in it, `[R]`.
    """
    lengths = ((ends + STEP) // STEP * STEP).clamp(max=context)
    several = lengths.unique().tolist() or [min(STEP, context)]
    return [(length, (lengths == length).nonzero()[:, 0]) for length in several]


class FastText(FastTower[TextWeights]):
    """The text tower by the fast path.

    Args:
        clip: A model that `why_not_text` does not object to; its parameters are read, never written.
        prompts: Whose words the tower reads, or None.
        adapters: Of the text tower, or None.
    """

    def __init__(self, clip: nn.Module, prompts: Prompts | None = None, adapters: TowerAdapters | None = None) -> None:
        super().__init__(prompts, adapters)
        self.tower: Any = text_tower(clip)

    def packed(self) -> list[Tensor]:
        """Return the parameters of blocks, positions, last norm and projection."""
        tower = self.tower
        own = [tower.positional_embedding, *tower.ln_final.parameters(), *tower.transformer.parameters()]
        projection = tower.text_projection
        if projection is None:
            return own
        return own + (list(projection.parameters()) if isinstance(projection, nn.Module) else [projection])

    def pack(self, dtype: torch.dtype) -> TextWeights:
        """Cast the tower."""
        tower, bias = self.tower, None
        projection = given = tower.text_projection
        if isinstance(given, nn.Linear):
            projection, bias = given.weight.T, given.bias
        return TextWeights(
            **vars(pack_blocks(tower.transformer, dtype, self.adapters)),
            positions=cast(tower.positional_embedding, dtype),
            ln_final=Affine.of(tower.ln_final, dtype),
            projection=None if projection is None else cast(projection, dtype),
            projection_bias=None if bias is None else cast(bias, dtype),
        )

    def embed(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Embed token ids `[N, L]`: `[N, D]` in the working precision."""
        layers = () if self.prompts is None else self.prompts.text_layers()
        words = [layer.to(dtype) for layer in layers]
        ids = make_room(ids, len(words[0]) if words else 0)
        ends = ids.argmax(dim=1)  # the end token has the highest number of CLIP's vocabulary
        weights = self.weights(dtype)
        divided = [
            (length, rows, torch.cat([rows, rows[:1].expand(-len(rows) % ROWS)]))
            for length, rows in passes(ends, ids.shape[1])
        ]
        read = [ids[filled, :length].flatten() for length, _, filled in divided]
        looked_up = self.tower.token_embedding(torch.cat(read)).to(dtype).split([len(part) for part in read])
        found = []
        for (length, rows, filled), x in zip(divided, looked_up, strict=True):
            gates = None if self.gates is None else self.gates[filled]
            embedded = _embed(weights, x.view(len(filled), length, x.shape[-1]), ends[filled], words, gates)
            found.append(embedded[: len(rows)])
        order = torch.cat([rows for _, rows, _ in divided])
        return torch.cat(found)[order.argsort()]


def _embed(weights: TextWeights, x: Tensor, ends: Tensor, words: Sequence[Tensor], gates: Tensor | None) -> Tensor:
    """Run the tower on looked-up tokens `[R, T, W]` whose texts end at `ends` `[R]`: `[R, D]`."""
    rows, length, _ = x.shape
    every = torch.arange(rows, device=x.device)
    later = torch.full((length, length), -torch.inf, dtype=x.dtype, device=x.device).triu(1)

    def end_token(x: Tensor) -> Tensor:
        return x[every, ends][:, None]

    if words:
        x = _put(x, words[0])
    x = x + weights.positions[:length]
    last = len(weights.blocks) - 1
    for layer, block in enumerate(weights.blocks):
        if 0 < layer < len(words):
            x = _put(x, words[layer])
        gate = None if gates is None else gates[:, layer]
        if layer < last:
            x = run_block(x, block, weights, mask=later, gates=gate)
        else:
            x = run_block(x, block, weights, pick=end_token, mask=later[ends][:, None], gates=gate)
    pooled = layer_norm(x[:, 0], weights.ln_final, weights.eps)
    if weights.projection is None:
        return pooled
    projected = pooled @ weights.projection
    return projected if weights.projection_bias is None else projected + weights.projection_bias


def _put(x: Tensor, words: Tensor) -> Tensor:
    """Put words `[M, W]` after the start tokens of `[R, T, W]`, in the place of what stands there."""
    return torch.cat([x[:, :1], words.expand(len(x), -1, -1), x[:, 1 + len(words) :]], dim=1)
