"""Let a model speak about many images, tile by tile, and compare what it says with a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ironclip.attacks.driver import DriverSettings, exact_float32, untouched_random_state
from ironclip.attacks.objectives import frozen


def said_of(
    model: Any, pixels: Tensor, prompts: Sequence[str], settings: DriverSettings, *, max_new_tokens: int
) -> list[str]:
    """Generate an answer an image in float32, a tile at a time.

    The last tile is padded with copies of its first row, as the driver's are, so that rows that share a prompt do not
    depend on how many there are.

    Args:
        model: A VisionLanguageModel.
        pixels: Float32 `[N, 3, H, W]` in [0, 1].
        prompts: One an image.
        settings: Tile and granule.
        max_new_tokens: As `generate` takes it.
    """
    said: list[str] = []
    with untouched_random_state(), exact_float32(model.device), frozen((model,)), torch.no_grad():
        for own in torch.arange(len(pixels)).split(settings.tile):
            if not len(own):
                break
            rows = torch.cat([own, own[:1].repeat(-len(own) % settings.granule)])
            asked = [prompts[row] for row in rows.tolist()]
            texts = model.generate(pixels[rows].to(model.device), asked, max_new_tokens=max_new_tokens)
            said += texts[: len(own)]
    return said


@dataclass(frozen=True)
class Match:
    """How an answer relates to a target sentence, capitals and white space left out of account.

    Attributes:
        contains: The sentence stands in it; what published success rates count.
        begins: It begins with the sentence.
        equals: It is the sentence.
    """

    contains: bool
    begins: bool
    equals: bool


def match(answer: str, target: str) -> Match:
    """Compare an answer with a target sentence."""
    said, wanted = (" ".join(text.lower().split()) for text in (answer, target))
    return Match(wanted in said, said.startswith(wanted), said == wanted)
