"""Contrastive losses within a batch: each image among the batch's texts, each text among its images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ironclip.losses.classification import cross_entropy_loss


def pair_losses(logits: Tensor) -> tuple[Tensor, Tensor]:
    """InfoNCE in both directions, the pairs on the diagonal.

    Args:
        logits: `[B, B]`, images by texts, the logit scale included.

    Returns:
        Two scalars: of each image among the texts, and of each text among the images.

    Source: Radford et al., 2021, arXiv:2103.00020, figure 3.
    """
    own = torch.arange(len(logits), device=logits.device)
    return cross_entropy_loss(logits, own), cross_entropy_loss(logits.T, own)


def shared_pair_losses(logits: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
    """`pair_losses` where an image has several texts and a text several images: each counts alike.

    Equal prompts in a batch are each other's negatives in `pair_losses`; here they need not be.

    Args:
        logits: `[B, B]`, images by texts, the logit scale included.
        positives: `[B, B]`, 1 where image and text belong together, else 0; none of its rows and columns is empty.

    Returns:
        Two scalars: of each image among the texts, and of each text among the images.

    Source: Khosla et al., NeurIPS 2020, arXiv:2004.11362, the form with the sum outside the logarithm.
    """
    target = positives.to(logits.dtype)
    return (
        cross_entropy_loss(logits, target / target.sum(dim=1, keepdim=True)),
        cross_entropy_loss(logits.T, target.T / target.T.sum(dim=1, keepdim=True)),
    )


def mpm_nce_loss(
    similarity: Tensor, positives: Tensor, *, temperature: float, smoothing: float, margin: float
) -> Tensor:
    """MPM-NCE: several positives a row, their labels smoothed, and a margin that the negatives are handicapped by.

    Args:
        similarity: Cosines `[B, B]`, images by texts.
        positives: Bool `[B, B]`, which of them belong together; none of its rows and columns is empty.
        temperature: Divisor of the cosines (tau in the paper).
        smoothing: Share of the target that goes to the negatives, where there are any (epsilon in the paper).
        margin: Added to the cosines of negatives (delta in the paper).

    Returns:
        Scalar, the mean over images and texts. The image-side targets of the text-to-image half are normalised over the
        images; in the paper's notation they need not sum to 1 (our reading).

    Source: Kim et al., ECCV 2024, arXiv:2408.05749, equation 6.
    """
    logits = (similarity + margin * (~positives).to(similarity.dtype)) / temperature
    halves = ((logits, positives), (logits.T, positives.T))
    rows = [F.cross_entropy(half, _smoothed(own.to(half.dtype), smoothing)) for half, own in halves]
    return (rows[0] + rows[1]) / 2


def _smoothed(positives: Tensor, smoothing: float) -> Tensor:
    """Spread 1 - smoothing over a row's positives and smoothing over its negatives; nothing over negatives if none."""
    count = positives.sum(dim=1, keepdim=True)
    others = (positives.shape[1] - count).clamp(min=1)
    return (1 - smoothing) * positives / count + smoothing * (1 - positives) / others


def in_batch_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of both directions of InfoNCE between images and the prompts of their labels.

    Images of one class have equal prompts and are yet each other's negatives: with n images of a class its rows
    cannot fall below ln n.

    Args:
        logits: `[B, C]` against all classes, the logit scale included.
        labels: `[B]` int64.

    Returns:
        Scalar. Source: `FT.py` of TGA-ZSR's code, the baselines of Yu et al., NeurIPS 2024, arXiv:2410.21802.
    """
    image_to_text, text_to_image = pair_losses(logits[:, labels])
    return (image_to_text + text_to_image) / 2
