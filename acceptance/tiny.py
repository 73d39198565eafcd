"""What the bundled model and the quickstart must show: one item for each group of claims, the cheap ones first."""

from __future__ import annotations

from acceptance import (
    tiny_card,
    tiny_fragility,
    tiny_quickstart,
    tiny_resume,
    tiny_retrieval,
    tiny_stock,
    tiny_zero_shot,
)

ITEMS = (
    tiny_card.model_card,
    tiny_stock.stock,
    tiny_zero_shot.bundled,
    tiny_zero_shot.seen,
    tiny_zero_shot.unseen,
    tiny_retrieval.retrieval,
    tiny_fragility.fragility,
    tiny_resume.pretrain_resume,
    tiny_quickstart.quickstart,
)
