"""What two models say of a batch, made up: embeddings of all four passes, class prompts, labels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ironclip.methods.base import Batch, ImageView, Pass, Views

PASSES = {
    "adv": Pass.STUDENT_ADV,
    "clean": Pass.STUDENT_CLEAN,
    "teacher_adv": Pass.TEACHER_ADV,
    "teacher_clean": Pass.TEACHER_CLEAN,
}


def made_up_parts(count: int = 4, width: int = 6, classes: int = 5, *, seed: int = 0, spread: float = 1.0) -> dict:
    """Draw embeddings `[count, width]` float64 for each pass, `spread` around one for all, texts and labels."""
    random = torch.Generator().manual_seed(seed)

    def draw(rows: int) -> Tensor:
        return torch.randn(rows, width, generator=random, dtype=torch.float64)

    texts, middle = draw(classes), 3 * draw(count)
    parts = {name: middle + 3 * spread * draw(count) for name in PASSES}
    return parts | {"text": texts, "labels": torch.arange(count) * 2 % classes}


def views_of(name: str, parts: dict[str, Any], logit_scale: float = 100.0) -> Views:
    """Put raw embeddings into the passes that a method's loss reads; texts are normalised."""
    weights, labels = F.normalize(parts["text"], dim=-1), parts["labels"]
    batch = Batch([str(row) for row in range(len(labels))], torch.zeros(len(labels), 3, 8, 8), labels, (), weights)
    passes = {PASSES[part]: ImageView(parts[part], weights) for part in PASSES}
    return Views(name, batch, passes, torch.tensor(logit_scale, dtype=parts["adv"].dtype))


def as_lists(parts: dict[str, Any]) -> dict[str, Any]:
    """Give the same as lists, for oracles."""
    return {name: value.tolist() for name, value in parts.items()}
