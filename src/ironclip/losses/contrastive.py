"""Contrastive losses within a batch: each image among the batch's texts, each text among its images."""

from __future__ import annotations

import torch
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
