"""The fast path: open_clip's ViT image tower on low-precision working weights.

What is unusual here, and why (measurements: docs/performance.md):

- Working weights are packed once a change of the parameters and reused; they carry no gradient where the parameters
  ask for none, so that an attack pays for the input gradient only.
- Pixels are cast after normalisation. Their rounding (steps up to 2^-7, as coarse as a perturbation of 1/255) averages
  out over a patch: a second bfloat16 half that carries the rest was tried and moved no verdict (decision 003).
- The last block computes the class token only, where only that is asked for.
- Shapes depend on the tile only, and every product treats rows alike: rows do not depend on their neighbours.
- Prompts are tokens more; adapters are swallowed by the working weights, but where training drops some of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from ironclip.models.adapters import TowerAdapters
from ironclip.models.fast_blocks import Affine, TowerWeights, cast, layer_norm, pack_blocks, run_block, why_not_blocks
from ironclip.models.prompts import Prompts
from ironclip.models.working_copies import FastTower


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
    return why_not_blocks(tower.transformer)


@dataclass(frozen=True, kw_only=True)
class VisionWeights(TowerWeights):
    """The image tower in one precision."""

    patch: Tensor
    patch_size: int
    class_token: Tensor
    positions: Tensor
    ln_pre: Affine
    ln_post: Affine
    projection: Tensor


def pack(tower: Any, dtype: torch.dtype, adapters: TowerAdapters | None = None) -> VisionWeights:
    """Cast a tower's parameters to the working precision; differentiable with respect to them."""
    return VisionWeights(
        **vars(pack_blocks(tower.transformer, dtype, adapters)),
        patch=cast(tower.conv1.weight.flatten(1), dtype),
        patch_size=int(tower.conv1.kernel_size[0]),
        class_token=cast(tower.class_embedding, dtype),
        positions=cast(tower.positional_embedding, dtype),
        ln_pre=Affine.of(tower.ln_pre, dtype),
        ln_post=Affine.of(tower.ln_post, dtype),
        projection=cast(tower.proj, dtype),
    )


def cut_patches(images: Tensor, side: int) -> Tensor:
    """Cut `[B, 3, H, W]` into flat patches in reading order: `[B, P, 3 * side * side]`."""
    batch, channels, height, width = images.shape
    rows, columns = height // side, width // side
    grid = images.reshape(batch, channels, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5)
    return grid.reshape(batch, rows * columns, channels * side * side)


def embed_patches(weights: VisionWeights, normalised: Tensor) -> Tensor:
    """Cut `[B, 3, H, W]` into patches and project them: `[B, P, W]` in the working precision."""
    return F.linear(cut_patches(normalised.to(weights.patch.dtype), weights.patch_size), weights.patch)


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


def first_token(x: Tensor) -> Tensor:
    """Pick the class token of `[B, T, W]`: `[B, 1, W]`."""
    return x[:, :1]


def class_token(weights: VisionWeights, normalised: Tensor, inserted: Inserted = NOTHING) -> Tensor:
    """Run the tower for its class token `[B, W]`, before the last norm.

    Of the last block nobody reads the patches: without them it costs a sixth.
    """
    last = len(weights.blocks) - 1
    x = tokens(weights, normalised, layers=last, inserted=inserted)
    x = inserted.before(last, x)
    return run_block(x, weights.blocks[last], weights, pick=first_token, gates=inserted.gates_of(last))[:, 0]


def project(weights: VisionWeights, x: Tensor) -> Tensor:
    """Apply the last norm and the projection to `[..., W]`: `[..., D]`."""
    return layer_norm(x, weights.ln_post, weights.eps) @ weights.projection


def embed(weights: VisionWeights, normalised: Tensor, inserted: Inserted = NOTHING) -> Tensor:
    """Embed `[B, 3, R, R]`: `[B, D]` in the working precision."""
    return project(weights, class_token(weights, normalised, inserted))


Run = Callable[[VisionWeights, Tensor, Inserted], Tensor]


@cache
def compiled_embed() -> Run:
    """Return `embed` by torch.compile: one for all models, since compiling takes long."""
    return torch.compile(embed)


class FastVision(FastTower[VisionWeights]):
    """The image tower by the fast path.

    Args:
        tower: A tower that `why_not` does not object to; its parameters are read, never written.
        prompts: Whose tokens the tower reads, or None.
        adapters: Of the tower, or None.

    Attributes:
        run: `embed`, or `embed` compiled.
    """

    def __init__(self, tower: nn.Module, prompts: Prompts | None = None, adapters: TowerAdapters | None = None) -> None:
        super().__init__(prompts, adapters)
        self.tower = tower
        self.run: Run = embed

    def packed(self) -> list[Tensor]:
        """Return the tower's parameters."""
        return list(self.tower.parameters())

    def pack(self, dtype: torch.dtype) -> VisionWeights:
        """Cast the tower."""
        return pack(self.tower, dtype, self.adapters)

    def embed(self, normalised: Tensor, dtype: torch.dtype) -> Tensor:
        """Embed `[B, 3, R, R]`: `[B, D]` in the working precision."""
        return self.run(self.weights(dtype), normalised, self._inserted(dtype))

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

    def _inserted(self, dtype: torch.dtype) -> Inserted:
        layers = () if self.prompts is None else self.prompts.image_layers()
        return Inserted([layer.to(dtype) for layer in layers], self.gates)
