"""What a transformer tower computes and keeps, counted from its sizes: operations in matrix products, and bytes.

A multiplication and an addition are two operations. What is not a matrix product (norms, softmax, activations) is some
per cent of the time and is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from open_clip.transformer import QuickGELU
from torch import nn

from ironclip.errors import ConfigError
from ironclip.models.fast import why_not
from ironclip.models.fast_text import why_not_text
from ironclip.models.prompts import text_tower


class Gradients(Enum):
    """What is differentiated after a forward pass.

    Attributes:
        pixels: Gradients reach the tower's input.
        inside: They flow through its blocks.
        weights: They are taken of every weight.
        adapters: Of adapters, and so of nothing before the first of them.
    """

    NONE = (False, False, False, False)
    PIXELS = (True, True, False, False)
    INSIDE = (False, True, False, False)
    ADAPTERS = (False, True, False, True)
    WEIGHTS = (False, True, True, False)

    def __init__(self, pixels: bool, inside: bool, weights: bool, adapters: bool) -> None:
        self.pixels, self.inside, self.weights, self.adapters = pixels, inside, weights, adapters


@dataclass(frozen=True, kw_only=True)
class Tower:
    """Sizes of a transformer tower.

    Attributes:
        tokens: Of an image, the class token among them; of a text, its whole context.
        width: Of a token.
        hidden: Of the MLP inside a block.
        layers: Blocks.
        heads: Of the attention.
        patch: Numbers in a patch of pixels; 0 for a text tower, which looks its tokens up.
        embedding: Width D of what comes out.
        parameters: In all.
        quick: Its activation is QuickGELU, which keeps one tensor more than GELU.
    """

    tokens: int
    width: int
    hidden: int
    layers: int
    heads: int
    patch: int
    embedding: int
    parameters: int
    quick: bool

    def operations(
        self,
        gradients: Gradients,
        *,
        rows: float = 1,
        tokens: int | None = None,
        patches: bool = False,
        beside: bool = False,
        recomputed: bool = False,
    ) -> float:
        """Count the operations of a pass.

        Of the last block only the token goes on that is read (class token, end token), as on the fast path, unless
        patches are read too.

        Args:
            gradients: What is differentiated.
            rows: Images or texts.
            tokens: Of each, where it is not `self.tokens` (prompts beside patches, short texts).
            patches: The patches are read too.
            beside: Adapters stand beside the weights, two maps a block.
            recomputed: Blocks run forward again in the backward pass (activation checkpointing).
        """
        length, width = self.tokens if tokens is None else tokens, self.width
        forwards = 2 if recomputed and gradients.inside else 1
        # A product with weights has two gradients, by its input and by the weights; that of two activations, both.
        through, own = int(gradients.inside), int(gradients.weights)
        merged, mapped = int(gradients.adapters and not beside), int(gradients.adapters)
        count = 0.0
        for layer in range(self.layers):
            queries = 1 if layer == self.layers - 1 and not patches else length
            into = 0 if gradients.adapters and layer == 0 else through
            count += (forwards + into + own) * (queries + 2 * length) * width * width  # queries, keys and values
            count += (forwards + 2 * into) * 2 * queries * length * width  # scores, and values mixed by them
            count += (forwards + into + own + merged) * queries * width * width
            count += (2 * (forwards + through + own) + merged) * queries * width * self.hidden
            if beside:
                count += (2 * (forwards + mapped) + into + through) * queries * width * width
        if self.patch:
            count += (1 + gradients.pixels + own) * (self.tokens - 1) * self.patch * width
        count += (1 + through + own) * (self.tokens if patches else 1) * width * self.embedding
        return 2 * rows * count

    def merging(self) -> float:
        """Count the operations of letting the weights swallow full adapters once."""
        return 2.0 * self.layers * self.width**2 * (self.width + self.hidden)

    def activations(self, gradients: Gradients, *, tokens: int | None = None, checkpointed: bool = False) -> float:
        """Count the numbers that a pass of one row keeps for its gradients.

        Norms keep their input, the attention its queries, keys, values and shares, an activation its input (QuickGELU
        a sigmoid too); with weight gradients the inputs of the four products of a block as well. Checkpointing keeps
        each block's input, and all of one block.
        """
        length, width = self.tokens if tokens is None else tokens, self.width
        if not gradients.inside:
            return 2.0 * length * (width + self.hidden)  # of one block at a time
        block = length * (5 * width + (1 + self.quick) * self.hidden) + self.heads * length * length
        if gradients.weights:
            block += length * (3 * width + self.hidden)
        return block + self.layers * length * width if checkpointed else self.layers * block


def tower_sizes(clip: Any) -> tuple[Tower, Tower]:
    """Read the sizes of a model's image tower and text tower.

    Raises:
        ConfigError: One of them is none that the fast path serves, so its operations would be others.
    """
    for tower, reason in (("image", why_not(clip.visual)), ("text", why_not_text(clip))):
        if reason is not None:
            raise ConfigError(
                f"what this {tower} tower computes is not counted: {reason}.",
                "Count a vision transformer of open_clip: --architecture ViT-B-32, say.",
            )
    return image_sizes(clip.visual), text_sizes(clip)


def image_sizes(tower: Any) -> Tower:
    """Read the sizes of an image tower that the fast path serves."""
    tokens, width = tower.positional_embedding.shape
    return _sizes(tower, tokens, width, tower.conv1.weight[0].numel(), tower.proj.shape[1])


def text_sizes(clip: Any) -> Tower:
    """Read the sizes of a model's text tower; its tables of tokens and positions count among the parameters."""
    tower = text_tower(clip)
    tokens, width = tower.positional_embedding.shape
    projection = tower.text_projection
    weight = projection.weight.T if isinstance(projection, nn.Linear) else projection
    return _sizes(tower, tokens, width, 0, width if weight is None else weight.shape[1])


def _sizes(tower: Any, tokens: int, width: int, patch: int, embedding: int) -> Tower:
    block = tower.transformer.resblocks[0]
    parts = [tower.transformer, tower.ln_post] if patch else [tower.transformer, tower.token_embedding, tower.ln_final]
    parameters = sum(parameter.numel() for part in parts for parameter in part.parameters())
    return Tower(
        tokens=tokens,
        width=width,
        hidden=block.mlp.c_fc.weight.shape[0],
        layers=len(tower.transformer.resblocks),
        heads=block.attn.num_heads,
        patch=patch,
        embedding=embedding,
        parameters=parameters + tokens * width + width * embedding + (patch + 3) * width * (patch > 0),
        quick=isinstance(block.mlp.gelu, QuickGELU),
    )
