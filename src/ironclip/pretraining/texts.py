"""What images are compared with: features of prompts and captions under the frozen text tower, computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ironclip.data.classes import fill_templates
from ironclip.pretraining.corpus import Part
from ironclip.randomness import digest

EmbedTexts = Callable[[Sequence[str]], Tensor]
"""Texts to unit rows `[N, D]`."""


@dataclass(frozen=True)
class PromptBank:
    """The prompts of one source's classes.

    Attributes:
        rows: Unit rows `[C, V, D]`: V prompts a class (words times templates); a class with fewer repeats its own.
        mean: Unit rows `[C, D]`: the mean over templates of the class's first name, as a zero-shot classifier has it.
    """

    rows: Tensor
    mean: Tensor

    def draw(self, name: str, seed: int, step: int) -> Tensor:
        """Draw a prompt for each class, `[C, D]`: a function of (source, seed, step)."""
        key = int.from_bytes(digest(seed, "prompts", name, step), "big")
        random = np.random.Generator(np.random.Philox(key=key))
        classes, prompts = self.rows.shape[:2]
        chosen = torch.from_numpy(random.integers(0, prompts, classes)).to(self.rows.device)
        return self.rows[torch.arange(classes, device=chosen.device), chosen]


@dataclass(frozen=True)
class CaptionBank:
    """The captions of one source.

    Attributes:
        rows: Unit rows `[M, D]`, the captions of all images one after the other.
        starts: `[N]`, the row of each image's first caption.
        counts: `[N]`, how many it has.
    """

    rows: Tensor
    starts: Tensor
    counts: Tensor

    def draw(self, name: str, images: Tensor, against: int, seed: int, step: int) -> Tensor:
        """Draw a caption for each image, and others that they are told from: `[B + against, D]`, its own first."""
        key = int.from_bytes(digest(seed, "captions", name, step), "big")
        random = np.random.Generator(np.random.Philox(key=key))
        counts = self.counts[images].numpy()
        own = self.starts[images] + torch.from_numpy(random.integers(0, counts))
        # Captions of images of this batch are no wrong answers.
        others = random.permutation(len(self.starts))[: against + len(images)]
        others = others[~np.isin(others, images.numpy())][:against]
        rest = self.starts[others] + torch.from_numpy(random.integers(0, self.counts[others].numpy()))
        return self.rows[torch.cat([own, rest]).to(self.rows.device)]


def embed_prompts(part: Part, embed: EmbedTexts) -> PromptBank:
    """Embed all prompts of a source's classes."""
    prompts = [[text for word in words for text in fill_templates(word, part.templates)] for words in part.words]
    most = max(map(len, prompts))
    flat = embed([text for own in prompts for text in own])
    rows, start = [], 0
    for own in prompts:
        block = flat[start : start + len(own)]
        start += len(own)
        rows.append(block[torch.arange(most, device=block.device) % len(own)])
    banks = torch.stack(rows)
    return PromptBank(banks, F.normalize(banks[:, : len(part.templates)].mean(dim=1), dim=-1))


def embed_captions(part: Part, embed: EmbedTexts) -> CaptionBank:
    """Embed all captions of a source."""
    counts = torch.tensor([len(own) for own in part.captions])
    rows = embed([caption for own in part.captions for caption in own])
    return CaptionBank(rows, counts.cumsum(0) - counts, counts)
