"""The text tower on as many tokens as the texts have: most phrases need ten of the 77 places.

The tower is causal and reads its result off the end token, so what follows that token changes nothing, and of the last
block nobody reads any other token. Attention is two batched products: the fused kernels of CPUs are slower for so few
tokens, backwards above all.
"""

from __future__ import annotations

from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from ironclip.errors import ConfigError
from ironclip.models.clip import CLIPModel
from ironclip.models.fast_blocks import split_heads

# Texts of like length share a pass: a long caption would fill up all others of the batch.
_PASSES = 4


def check_text_tower(model: CLIPModel) -> None:
    """Refuse a text tower that cannot be read at part of its length.

    Raises:
        ConfigError: It is not causal, reads its result elsewhere than off the end token, or has other blocks.
    """
    clip = model.clip
    if (
        not isinstance(clip, open_clip.CLIP)
        or clip.text_pool_type != "argmax"
        or clip.attn_mask is None
        or not all(
            type(block) is ResidualAttentionBlock and isinstance(block.attn, nn.MultiheadAttention)
            for block in clip.transformer.resblocks
        )
    ):
        raise ConfigError(
            f"the text tower of {model.spec.origin} is not CLIP's own (plain causal blocks, read off the end token).",
            "Take an architecture without custom_text, and with no other than sizes in text_cfg.",
        )


def text_features(model: CLIPModel, ids: Tensor) -> Tensor:
    """Embed token ids as unit rows, float32 `[N, D]`; what `CLIPModel.text_features` gives, in less time.

    Args:
        model: A model that `check_text_tower` does not refuse.
        ids: Token ids `[N, L]`, filled up with zeros behind the end token.
    """
    order = ids.argmax(dim=1).argsort(stable=True)  # the end token is the highest
    passes = [ids[rows] for rows in order.tensor_split(min(_PASSES, len(order)))]
    passes = [part[:, : int(part.argmax(dim=1).max()) + 1] for part in passes]
    # One look-up for all: each has a gradient as large as the whole table.
    looked_up = model.clip.token_embedding(torch.cat([part.flatten() for part in passes]))
    tokens = looked_up.split([part.numel() for part in passes])
    rows = [_embed(model.clip, part, x.view(*part.shape, -1)) for part, x in zip(passes, tokens, strict=True)]
    return F.normalize(torch.cat(rows)[order.argsort()].float(), dim=-1)


def _embed(clip: Any, ids: Tensor, tokens: Tensor) -> Tensor:
    ends = ids.argmax(dim=1)
    length = ids.shape[1]
    x = tokens + clip.positional_embedding[:length]
    mask = clip.attn_mask[:length, :length]
    *blocks, last = clip.transformer.resblocks
    for block in blocks:
        x = _run_block(block, x, mask)
    x = clip.ln_final(_run_block(last, x, mask, ends))
    projected: Tensor = clip.text_projection(x) if callable(clip.text_projection) else x @ clip.text_projection
    return projected


def _run_block(block: Any, x: Tensor, mask: Tensor, at: Tensor | None = None) -> Tensor:
    """Run a block on `[N, T, W]`; with one position a text, on that token alone: `[N, W]`."""
    texts, length, width = x.shape
    attention = block.attn
    projected = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = split_heads(projected, 3, attention.num_heads)
    scores = torch.baddbmm(mask.to(query.dtype), query, key.transpose(1, 2), alpha=query.shape[-1] ** -0.5)
    mixed = torch.bmm(scores.softmax(dim=-1), value).view(texts, attention.num_heads, length, -1)
    joined = mixed.transpose(1, 2).reshape(texts, length, width)
    if at is not None:
        every = torch.arange(texts, device=x.device)
        joined, x = joined[every, at], x[every, at]
    x = x + block.ls_1(attention.out_proj(joined))
    moved: Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
    return moved
