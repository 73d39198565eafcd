"""open_clip's text tower with what prompts and adapters put into it; without them open_clip's own pass serves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from ironclip.models.adapters import TowerAdapters, adapt
from ironclip.models.prompts import text_tower


def why_no_pieces(clip: nn.Module) -> str | None:
    """Say why prompts and adapters do not fit into a model's text tower, or None if they do."""
    text = text_tower(clip)
    blocks = getattr(getattr(text, "transformer", None), "resblocks", None)
    if blocks is None or any(type(block) is not ResidualAttentionBlock for block in blocks):
        return "its text tower has no plain attention blocks"
    pooling = getattr(text, "text_pool_type", getattr(text, "pool_type", "argmax"))
    if pooling != "argmax" or getattr(text, "cls_emb", None) is not None:
        return "its text tower does not read the end token"
    if not getattr(text.transformer, "batch_first", True):
        return "its text tower does not put the batch first"
    return None


def make_room(ids: Tensor, length: int) -> Tensor:
    """Move texts `[N, L]` back by `length` places after their start token; the end token stays, whatever is cut."""
    if not length:
        return ids
    moved = torch.cat([ids[:, :1], ids.new_zeros(len(ids), length), ids[:, 1 : ids.shape[1] - length]], dim=1)
    end = ids.amax(dim=1)
    cut = moved.amax(dim=1) != end
    moved[cut, -1] = end[cut]
    return moved


def embed_ids(clip: Any, ids: Tensor, words: Sequence[Tensor], adapters: TowerAdapters | None) -> Tensor:
    """Embed token ids, raw.

    Args:
        clip: A model that `why_no_pieces` does not object to.
        ids: `[N, L]`.
        words: Learned words `[M, W]` a layer; see `models.prompts`.
        adapters: Of the text tower, or None.

    Returns:
        `[N, D]` in the precision of the weights.
    """
    text = text_tower(clip)
    ids = make_room(ids, len(words[0]) if words else 0)
    x = text.token_embedding(ids)
    if words:
        x = _put(x, words[0])
    x = x + text.positional_embedding[: ids.shape[1]]
    products = [] if adapters is None else adapters.products()
    gates = None if adapters is None else adapters.gates
    for layer, block in enumerate(text.transformer.resblocks):
        if 0 < layer < len(words):
            x = _put(x, words[layer])
        if not products:
            x = block(x, attn_mask=text.attn_mask)
            continue
        gate = (None, None) if gates is None else gates[:, layer].unbind(1)
        branch = block.attention(q_x=block.ln_1(x), attn_mask=text.attn_mask)
        x = x + block.ls_1(adapt(branch, products[layer][0], gate[0]))
        x = x + block.ls_2(adapt(block.mlp(block.ln_2(x)), products[layer][1], gate[1]))
    x = text.ln_final(x)
    pooled: Tensor = x[torch.arange(len(x), device=x.device), ids.argmax(dim=-1)]
    projection = text.text_projection
    if projection is None:
        return pooled
    projected: Tensor = projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
    return projected


def _put(x: Tensor, words: Tensor) -> Tensor:
    """Put words `[M, W]` after the start tokens of `[N, L, W]`, in the place of what stands there."""
    return torch.cat([x[:, :1], words.to(x.dtype).expand(len(x), -1, -1), x[:, 1 + len(words) :]], dim=1)
