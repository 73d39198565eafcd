"""What the fast paths of both towers share: transformer blocks on packed working weights.

Queries, keys and values are one contiguous `[3, B * heads, T, d]`; attention is two batched products, since the fused
kernels of CPUs are slower in bfloat16 for the 8 to 257 tokens of a CLIP tower. Where a GPU's fused kernel is faster,
`models.kernels` finds out and `TowerWeights.fused` says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import LayerNorm, LayerNormFp32, QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ironclip.models.adapters import TowerAdapters, adapt, merged


def why_not_blocks(transformer: Any) -> str | None:
    """Say why the fast path does not serve the blocks of a transformer of open_clip, or None if it does."""
    for block in transformer.resblocks:
        if type(block) is not ResidualAttentionBlock or not isinstance(block.attn, nn.MultiheadAttention):
            return "its blocks are not plain attention blocks"
        if not (isinstance(block.ls_1, nn.Identity) and isinstance(block.ls_2, nn.Identity)):
            return "its blocks scale their branches"
        activation = block.mlp.gelu
        if not isinstance(activation, nn.GELU | QuickGELU) or getattr(activation, "approximate", "none") != "none":
            return f"its activation is {activation}"
        if type(block.ln_1) not in (nn.LayerNorm, LayerNorm, LayerNormFp32):
            return f"its normalisation is {type(block.ln_1).__name__}"
    return None


@dataclass(frozen=True)
class Affine:
    """Weight and bias of a linear map or a layer norm, in the working precision."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, layer: Any, dtype: torch.dtype) -> Affine:
        """Cast the weight and bias of a layer."""
        return cls(cast(layer.weight, dtype), cast(layer.bias, dtype))


@dataclass(frozen=True)
class BlockWeights:
    """One transformer block; `adapters` after attention and MLP where `out` and `proj` have not swallowed them."""

    ln_1: Affine
    qkv: Affine
    out: Affine
    ln_2: Affine
    fc: Affine
    proj: Affine
    adapters: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class TowerWeights:
    """The blocks of a tower in one precision; tensors carry gradients to the parameters where those ask for them.

    Attributes:
        blocks: First to last.
        heads: Of every block.
        eps: Of every layer norm.
        activation: Of every MLP.
        fused: Attend by torch's scaled_dot_product_attention.
        recompute: Keep the inputs of a block only, and run it again in the backward pass.
    """

    blocks: tuple[BlockWeights, ...]
    heads: int
    eps: float
    activation: Callable[[Tensor], Tensor]
    fused: bool = False
    recompute: bool = False


def cast(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast a parameter to the working precision; differentiable."""
    return parameter.to(dtype).contiguous()


def pack_blocks(transformer: Any, dtype: torch.dtype, adapters: TowerAdapters | None = None) -> TowerWeights:
    """Cast the blocks of a transformer to the working precision; differentiable with respect to their parameters.

    Adapters are merged into the weights, or stand beside them while some are dropped.
    """

    def ending(module: Any, product: Tensor | None) -> Affine:
        if product is None:
            return Affine.of(module, dtype)
        wide = torch.promote_types(dtype, torch.float32)
        weight, bias = merged(module.weight.to(wide), module.bias.to(wide), product.to(wide))
        return Affine(cast(weight, dtype), cast(bias, dtype))

    resblocks = transformer.resblocks
    maps = [] if adapters is None else adapters.products()
    apart = adapters is not None and adapters.gates is not None
    inside = maps if maps and not apart else [(None, None)] * len(resblocks)
    beside = [(cast(one, dtype), cast(two, dtype)) for one, two in maps] if apart else [None] * len(resblocks)
    blocks = tuple(
        BlockWeights(
            ln_1=Affine.of(block.ln_1, dtype),
            qkv=Affine(cast(block.attn.in_proj_weight, dtype), cast(block.attn.in_proj_bias, dtype)),
            out=ending(block.attn.out_proj, attention),
            ln_2=Affine.of(block.ln_2, dtype),
            fc=Affine.of(block.mlp.c_fc, dtype),
            proj=ending(block.mlp.c_proj, mlp),
            adapters=pair,
        )
        for block, (attention, mlp), pair in zip(resblocks, inside, beside, strict=True)
    )
    first = resblocks[0]
    return TowerWeights(
        blocks=blocks,
        heads=int(first.attn.num_heads),
        eps=float(first.ln_1.eps),
        activation=quick_gelu if isinstance(first.mlp.gelu, QuickGELU) else F.gelu,
    )


def quick_gelu(x: Tensor) -> Tensor:
    """Return `x * sigmoid(1.702 x)`, the activation of OpenAI's CLIP."""
    return x * torch.sigmoid(1.702 * x)


def layer_norm(x: Tensor, affine: Affine, eps: float) -> Tensor:
    """Normalise the last axis."""
    return F.layer_norm(x, (x.shape[-1],), affine.weight, affine.bias, eps)


def split_heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """Cut `[B, T, parts * W]` into `parts` contiguous tensors `[B * heads, T, d]`."""
    batch, length, width = x.shape
    depth = width // parts // heads
    split = x.view(batch, length, parts, heads, depth).permute(2, 0, 3, 1, 4)
    return split.reshape(parts, batch * heads, length, depth).unbind(0)


def mix(
    query: Tensor, key: Tensor, value: Tensor, heads: int, *, mask: Tensor | None = None, fused: bool = False
) -> Tensor:
    """Attend from `[B * heads, Q, d]` to `[B * heads, T, d]`: `[B, Q, W]`, heads joined.

    Args:
        query: What asks.
        key: What is asked.
        value: What answers.
        heads: Of a token.
        mask: Added to the scores: `[Q, T]` or `[B, Q, T]`, 0 where a query may look and -inf where not.
        fused: Use torch's scaled_dot_product_attention.
    """
    rows, queries, depth = query.shape
    batch = rows // heads
    if fused:
        query, key, value = (x.unflatten(0, (batch, heads)) for x in (query, key, value))
        seen = mask if mask is None or mask.ndim == 2 else mask[:, None]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
    else:
        if mask is None:
            # The scale rides on the product: one pass over memory less than scaling the queries.
            nothing = query.new_zeros(1, 1, 1)
            scores = torch.baddbmm(nothing, query, key.transpose(1, 2), beta=0, alpha=depth**-0.5)
        else:
            added = mask if mask.ndim == 2 else mask.repeat_interleave(heads, dim=0)
            scores = torch.baddbmm(added, query, key.transpose(1, 2), alpha=depth**-0.5)
        mixed = torch.bmm(torch.softmax(scores, dim=-1), value).view(batch, heads, queries, depth)
    return mixed.transpose(1, 2).reshape(batch, queries, heads * depth)


Pick = Callable[[Tensor], Tensor]
"""From the tokens `[B, T, W]` to the one of each row that is read, `[B, 1, W]`."""


def attend(
    x: Tensor, block: BlockWeights, weights: TowerWeights, *, pick: Pick | None = None, mask: Tensor | None = None
) -> Tensor:
    """Multi-head self-attention on `[B, T, W]`, of all tokens or of the picked one alone; `mask` as in `mix`."""
    heads = weights.heads
    weight, bias = block.qkv.weight, block.qkv.bias
    if pick is None:
        query, key, value = split_heads(F.linear(x, weight, bias), 3, heads)
    else:
        width = x.shape[-1]
        (query,) = split_heads(F.linear(pick(x), weight[:width], bias[:width]), 1, heads)
        key, value = split_heads(F.linear(x, weight[width:], bias[width:]), 2, heads)
    mixed = mix(query, key, value, heads, mask=mask, fused=weights.fused)
    return F.linear(mixed, block.out.weight, block.out.bias)


def run_block(
    x: Tensor,
    block: BlockWeights,
    weights: TowerWeights,
    *,
    pick: Pick | None = None,
    mask: Tensor | None = None,
    gates: Tensor | None = None,
) -> Tensor:
    """Run a block of a tower on `[B, T, W]`.

    Args:
        x: Tokens.
        block: Of the tower.
        weights: The tower.
        pick: Compute what becomes of this token alone, `[B, 1, W]`.
        mask: See `mix`.
        gates: `[B, 2]`, factors of the adapters that stand beside the block's weights.
    """
    if weights.recompute:
        computed: Tensor = checkpoint(
            _run_block, x, block, weights, pick, mask, gates, use_reentrant=False, preserve_rng_state=False
        )
        return computed
    return _run_block(x, block, weights, pick, mask, gates)


def _run_block(
    x: Tensor, block: BlockWeights, weights: TowerWeights, pick: Pick | None, mask: Tensor | None, gates: Tensor | None
) -> Tensor:
    attended = attend(layer_norm(x, block.ln_1, weights.eps), block, weights, pick=pick, mask=mask)
    if block.adapters is not None and gates is not None:
        attended = adapt(attended, block.adapters[0], gates[:, 0])
    x = attended + (x if pick is None else pick(x))
    hidden = F.linear(layer_norm(x, block.ln_2, weights.eps), block.fc.weight, block.fc.bias)
    branch = F.linear(weights.activation(hidden), block.proj.weight, block.proj.bias)
    if block.adapters is not None and gates is not None:
        branch = adapt(branch, block.adapters[1], gates[:, 1])
    return x + branch
