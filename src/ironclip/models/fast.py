"""The fast path: open_clip's ViT image tower on low-precision working weights.

What is unusual here, and why (measurements: docs/performance.md):

- Working weights are packed once a change of the parameters and reused; they carry no gradient where the parameters
  ask for none, so that an attack pays for the input gradient only.
- Pixels are cast after normalisation. Their rounding (steps up to 2^-7, as coarse as a perturbation of 1/255) averages
  out over a patch: a second bfloat16 half that carries the rest was tried and moved no verdict (decision 003).
- Queries, keys and values are one contiguous `[3, B * heads, T, d]`; attention is two batched products. The fused
  attention kernels of CPUs are slower for the 50 to 257 tokens of a CLIP tower.
- The last block computes the class token only, where only that is asked for.
- Shapes depend on the tile only, and every product treats rows alike: rows do not depend on their neighbours.
- Prompts are tokens more; adapters are swallowed by the working weights, but where training drops some of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import LayerNorm, LayerNormFp32, QuickGELU, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.optim.optimizer import register_optimizer_step_post_hook

from ironclip.models.adapters import TowerAdapters, adapt, merged
from ironclip.models.prompts import Prompts


def why_not(tower: nn.Module) -> str | None:
    """Say why the fast path does not serve this tower, or None if it does."""
    if not isinstance(tower, VisionTransformer):
        return f"{type(tower).__name__} is not open_clip's VisionTransformer"
    # Other releases of open_clip may lack some of these; what is absent is not in use.
    if getattr(tower, "attn_pool", None) is not None or tower.pool_type != "tok":
        return "it does not pool by the class token"
    if not isinstance(tower.patch_dropout, nn.Identity):
        return "it drops patches"
    if tower.proj is None or tower.conv1.bias is not None:
        return "it has no projection, or a bias in the patch embedding"
    if isinstance(tower.ln_pre, nn.Identity) or getattr(tower, "final_ln_after_pool", False):
        return "its layer norms stand elsewhere"
    for block in tower.transformer.resblocks:
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


@dataclass(frozen=True)
class VisionWeights:
    """The tower in one precision; tensors carry gradients to the parameters where those ask for them."""

    patch: Tensor
    patch_size: int
    class_token: Tensor
    positions: Tensor
    ln_pre: Affine
    blocks: tuple[BlockWeights, ...]
    ln_post: Affine
    projection: Tensor
    heads: int
    eps: float
    activation: Callable[[Tensor], Tensor]


def quick_gelu(x: Tensor) -> Tensor:
    """Return `x * sigmoid(1.702 x)`, the activation of OpenAI's CLIP."""
    return x * torch.sigmoid(1.702 * x)


def pack(tower: Any, dtype: torch.dtype, adapters: TowerAdapters | None = None) -> VisionWeights:
    """Cast a tower's parameters to the working precision; differentiable with respect to them.

    Adapters are merged into the weights, or stand beside them while some are dropped.
    """

    def cast(parameter: Tensor) -> Tensor:
        return parameter.to(dtype).contiguous()

    def affine(weight: Tensor, bias: Tensor) -> Affine:
        return Affine(cast(weight), cast(bias))

    def layer(module: Any) -> Affine:
        return affine(module.weight, module.bias)

    def ending(module: Any, product: Tensor | None) -> Affine:
        if product is None:
            return layer(module)
        wide = torch.promote_types(dtype, torch.float32)
        return affine(*merged(module.weight.to(wide), module.bias.to(wide), product.to(wide)))

    resblocks = tower.transformer.resblocks
    maps = [] if adapters is None else adapters.products()
    apart = adapters is not None and adapters.gates is not None
    inside = maps if maps and not apart else [(None, None)] * len(resblocks)
    beside = [(cast(first), cast(second)) for first, second in maps] if apart else [None] * len(resblocks)
    blocks = tuple(
        BlockWeights(
            ln_1=layer(block.ln_1),
            qkv=affine(block.attn.in_proj_weight, block.attn.in_proj_bias),
            out=ending(block.attn.out_proj, attention),
            ln_2=layer(block.ln_2),
            fc=layer(block.mlp.c_fc),
            proj=ending(block.mlp.c_proj, mlp),
            adapters=pair,
        )
        for block, (attention, mlp), pair in zip(resblocks, inside, beside, strict=True)
    )
    first = tower.transformer.resblocks[0]
    return VisionWeights(
        patch=cast(tower.conv1.weight.flatten(1)),
        patch_size=int(tower.conv1.kernel_size[0]),
        class_token=cast(tower.class_embedding),
        positions=cast(tower.positional_embedding),
        ln_pre=layer(tower.ln_pre),
        blocks=blocks,
        ln_post=layer(tower.ln_post),
        projection=cast(tower.proj),
        heads=int(first.attn.num_heads),
        eps=float(first.ln_1.eps),
        activation=quick_gelu if isinstance(first.mlp.gelu, QuickGELU) else F.gelu,
    )


def layer_norm(x: Tensor, affine: Affine, eps: float) -> Tensor:
    """Normalise the last axis."""
    return F.layer_norm(x, (x.shape[-1],), affine.weight, affine.bias, eps)


def cut_patches(images: Tensor, side: int) -> Tensor:
    """Cut `[B, 3, H, W]` into flat patches in reading order: `[B, P, 3 * side * side]`."""
    batch, channels, height, width = images.shape
    rows, columns = height // side, width // side
    grid = images.reshape(batch, channels, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5)
    return grid.reshape(batch, rows * columns, channels * side * side)


def embed_patches(weights: VisionWeights, normalised: Tensor) -> Tensor:
    """Cut `[B, 3, H, W]` into patches and project them: `[B, P, W]` in the working precision."""
    return F.linear(cut_patches(normalised.to(weights.patch.dtype), weights.patch_size), weights.patch)


def split_heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """Cut `[B, T, parts * W]` into `parts` contiguous tensors `[B * heads, T, d]`."""
    batch, length, width = x.shape
    depth = width // parts // heads
    cut = x.view(batch, length, parts, heads, depth).permute(2, 0, 3, 1, 4)
    return cut.reshape(parts, batch * heads, length, depth).unbind(0)


def mix(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Attend from `[B * heads, Q, d]` to `[B * heads, T, d]`: `[B, Q, W]`, heads joined."""
    rows, queries, depth = query.shape
    # The scale rides on the product: one pass over memory less than scaling the queries.
    nothing = query.new_zeros(1, 1, 1)
    scores = torch.baddbmm(nothing, query, key.transpose(1, 2), beta=0, alpha=depth**-0.5)
    mixed = torch.bmm(torch.softmax(scores, dim=-1), value)
    return (
        mixed.view(rows // heads, heads, queries, depth).transpose(1, 2).reshape(rows // heads, queries, heads * depth)
    )


def attend(x: Tensor, block: BlockWeights, heads: int) -> Tensor:
    """Multi-head self-attention on `[B, T, W]`, without mask."""
    query, key, value = split_heads(F.linear(x, block.qkv.weight, block.qkv.bias), 3, heads)
    return F.linear(mix(query, key, value, heads), block.out.weight, block.out.bias)


def attend_from_class(x: Tensor, block: BlockWeights, heads: int) -> Tensor:
    """Multi-head self-attention of the class token alone: `[B, T, W]` to `[B, 1, W]`."""
    width = x.shape[-1]
    weight, bias = block.qkv.weight, block.qkv.bias
    (query,) = split_heads(F.linear(x[:, :1], weight[:width], bias[:width]), 1, heads)
    key, value = split_heads(F.linear(x, weight[width:], bias[width:]), 2, heads)
    return F.linear(mix(query, key, value, heads), block.out.weight, block.out.bias)


@dataclass(frozen=True)
class Inserted:
    """What tunable parts add to one pass.

    Attributes:
        prompts: Tokens `[N, W]` in the working precision: behind the patches before the first norm, then in their own
            place before block 1, 2, ...
        gates: Factors `[B, blocks, 2]` of the adapters that stand beside the weights.
    """

    prompts: Sequence[Tensor] = ()
    gates: Tensor | None = None

    def before(self, layer: int, x: Tensor) -> Tensor:
        """Put the prompts of a block in place, `[B, T, W]`."""
        if not 0 < layer < len(self.prompts):
            return x
        prompts = self.prompts[layer]
        return torch.cat([x[:, : x.shape[1] - len(prompts)], prompts.expand(len(x), -1, -1)], dim=1)

    def gates_of(self, layer: int) -> Tensor | None:
        """Return the gates of a block, `[B, 2]`."""
        return None if self.gates is None else self.gates[:, layer]


NOTHING = Inserted()


def run_block(
    x: Tensor, block: BlockWeights, weights: VisionWeights, *, class_only: bool = False, gates: Tensor | None = None
) -> Tensor:
    """Run a block on `[B, T, W]`; `class_only` gives its class token `[B, 1, W]` and computes no more than that.

    `gates` `[B, 2]` scale the adapters that stand beside the block's weights.
    """
    attention = attend_from_class if class_only else attend
    attended = attention(layer_norm(x, block.ln_1, weights.eps), block, weights.heads)
    if block.adapters is not None and gates is not None:
        attended = adapt(attended, block.adapters[0], gates[:, 0])
    x = attended + (x[:, :1] if class_only else x)
    hidden = F.linear(layer_norm(x, block.ln_2, weights.eps), block.fc.weight, block.fc.bias)
    branch = F.linear(weights.activation(hidden), block.proj.weight, block.proj.bias)
    if block.adapters is not None and gates is not None:
        branch = adapt(branch, block.adapters[1], gates[:, 1])
    return x + branch


def tokens(weights: VisionWeights, normalised: Tensor, *, layers: int, inserted: Inserted = NOTHING) -> Tensor:
    """Run the first `layers` blocks: `[B, 1 + P, W]`, class token first, prompts last, before the last norm."""
    patches = embed_patches(weights, normalised)
    batch, _, width = patches.shape
    x = torch.cat([weights.class_token.expand(batch, 1, width), patches], dim=1) + weights.positions
    if inserted.prompts:
        x = torch.cat([x, inserted.prompts[0].expand(batch, -1, -1)], dim=1)
    x = layer_norm(x, weights.ln_pre, weights.eps)
    for layer, block in enumerate(weights.blocks[:layers]):
        x = run_block(inserted.before(layer, x), block, weights, gates=inserted.gates_of(layer))
    return x


def class_token(weights: VisionWeights, normalised: Tensor, inserted: Inserted = NOTHING) -> Tensor:
    """Run the tower for its class token `[B, W]`, before the last norm.

    Of the last block nobody reads the patches: without them it costs a sixth.
    """
    last = len(weights.blocks) - 1
    x = tokens(weights, normalised, layers=last, inserted=inserted)
    x = inserted.before(last, x)
    return run_block(x, weights.blocks[last], weights, class_only=True, gates=inserted.gates_of(last))[:, 0]


def project(weights: VisionWeights, x: Tensor) -> Tensor:
    """Apply the last norm and the projection to `[..., W]`: `[..., D]`."""
    return layer_norm(x, weights.ln_post, weights.eps) @ weights.projection


def _count_fused_step(optimiser: torch.optim.Optimizer, *_: object) -> None:
    """Count the versions of parameters up where a fused optimiser, alone of all in-place updates, has not."""
    for group in optimiser.param_groups:
        if group.get("fused"):
            for parameter in group["params"]:
                increment_version(parameter)


register_optimizer_step_post_hook(_count_fused_step)


class FastVision:
    """A tower's working copies, one a precision, refreshed when the parameters change.

    Args:
        tower: A tower that `why_not` does not object to; its parameters are read, never written.
        prompts: Whose tokens the tower reads, or None.
        adapters: Of the tower, or None.
    """

    def __init__(self, tower: nn.Module, prompts: Prompts | None = None, adapters: TowerAdapters | None = None) -> None:
        self.tower, self.prompts, self.adapters = tower, prompts, adapters
        self._copies: dict[torch.dtype, tuple[object, VisionWeights]] = {}

    def weights(self, dtype: torch.dtype) -> VisionWeights:
        """Return working weights: a fresh differentiable cast where gradients are wanted, else the kept copy."""
        parameters = list(self.tower.parameters())
        if self.adapters is not None:
            parameters += self.adapters.parameters()
        if self._gates is not None or (torch.is_grad_enabled() and any(p.requires_grad for p in parameters)):
            return pack(self.tower, dtype, self.adapters)
        # In-place updates (optimisers, load_state_dict) count the version up; moves and swaps change the address.
        state = [(parameter._version, parameter.data_ptr()) for parameter in parameters]
        kept, copy = self._copies.get(dtype, (None, None))
        if copy is None or kept != state:
            # The copy outlives the caller's inference mode, whose tensors no attack could differentiate through.
            with torch.inference_mode(False), torch.no_grad():
                copy = pack(self.tower, dtype, self.adapters)
            self._copies[dtype] = (state, copy)
        return copy

    def embed(self, normalised: Tensor, dtype: torch.dtype) -> Tensor:
        """Embed `[B, 3, R, R]`: `[B, D]` in the working precision."""
        weights = self.weights(dtype)
        return project(weights, class_token(weights, normalised, self._inserted(dtype)))

    def embed_with_patches(self, normalised: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Embed `[B, 3, R, R]` and project its patches too, in one pass: `[B, D]`, `[B, P, D]`."""
        weights, inserted = self.weights(dtype), self._inserted(dtype)
        seen = tokens(weights, normalised, layers=len(weights.blocks), inserted=inserted)
        projected = project(weights, seen[:, : len(weights.positions)])
        return projected[:, 0], projected[:, 1:]

    def patch_tokens(self, normalised: Tensor, dtype: torch.dtype, *, layers: int, projected: bool) -> Tensor:
        """Return the patch tokens after so many blocks: `[B, P, D]` projected, else `[B, P, W]`."""
        weights, inserted = self.weights(dtype), self._inserted(dtype)
        patches = tokens(weights, normalised, layers=layers, inserted=inserted)[:, 1 : len(weights.positions)]
        return project(weights, patches) if projected else patches

    @property
    def _gates(self) -> Tensor | None:
        return None if self.adapters is None else self.adapters.gates

    def _inserted(self, dtype: torch.dtype) -> Inserted:
        layers = () if self.prompts is None else self.prompts.image_layers()
        return Inserted([layer.to(dtype) for layer in layers], self._gates)
