"""The image tower in pre-training: a forward pass that sees some of the patches, and the loss against class prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ironclip.models.fast import VisionWeights, cut_patches, first_token, project
from ironclip.models.fast_blocks import layer_norm, run_block


def embed_patches_kept(weights: VisionWeights, normalised: Tensor, kept: Tensor | None) -> Tensor:
    """Embed images of which the tower sees the class token and some patches (Li et al., CVPR 2023, FLIP).

    Args:
        weights: The tower, packed in its working precision.
        normalised: `[B, 3, R, R]`, after mean and std.
        kept: `[B, K]` patches of each image, or None for all.

    Returns:
        Raw float32 `[B, D]`. With all patches kept it is the tower's own forward pass.
    """
    patches, positions = cut_patches(normalised.to(weights.patch.dtype), weights.patch_size), weights.positions[1:]
    if kept is None:
        x = F.linear(patches, weights.patch) + positions
    else:
        patches = patches.gather(1, kept[:, :, None].expand(-1, -1, patches.shape[-1]))
        x = F.linear(patches, weights.patch) + positions[kept]
    first = (weights.class_token + weights.positions[0]).expand(len(x), 1, -1)
    x = layer_norm(torch.cat([first, x], dim=1), weights.ln_pre, weights.eps)
    for block in weights.blocks[:-1]:
        x = run_block(x, block, weights)
    x = run_block(x, weights.blocks[-1], weights, pick=first_token)[:, 0]
    return project(weights, x).float()


def prompt_loss(
    features: Tensor,
    texts: Tensor,
    labels: Tensor,
    partner: Tensor,
    own: Tensor,
    scale: Tensor,
    rivals: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of scaled cosines against texts, with the label of a mixed image divided between two.

    Args:
        features: Unit rows `[B, D]`.
        texts: Unit rows `[C, D]`.
        labels: `[B]`.
        partner: `[B]`, the row whose image was pasted in.
        own: `[B]`, the share of a row's own label.
        scale: On the cosines.
        rivals: Bool `[C, C]`, true where the class of the row is told from that of the column, and on the diagonal;
            all unless given.

    Returns:
        `[B]`.
    """
    logits = scale * features @ texts.T

    def loss_for(labels: Tensor) -> Tensor:
        compared = logits if rivals is None else logits.masked_fill(~rivals[labels], -math.inf)
        return F.cross_entropy(compared, labels, reduction="none")

    own_loss, other_loss = loss_for(labels), loss_for(labels[partner])
    return own * own_loss + (1 - own) * other_loss


def one_word_apart(names: Sequence[str]) -> Tensor:
    """Return which names have as many words and differ in at most one, bool `[C, C]`."""
    words = [name.split() for name in names]
    rows = [
        [len(one) == len(other) and sum(a != b for a, b in zip(one, other, strict=True)) <= 1 for other in words]
        for one in words
    ]
    return torch.tensor(rows)


def zero_shot_accuracy(features: Tensor, texts: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return top-1 accuracy and its mean over the classes that occur, for unit rows."""
    right = (features @ texts.T).argmax(dim=1) == labels
    per_class: Sequence[float] = [float(right[labels == label].float().mean()) for label in labels.unique()]
    return float(right.float().mean()), sum(per_class) / len(per_class)
