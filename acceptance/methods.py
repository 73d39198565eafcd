"""What the methods must show: one item for each group of claims, the cheap ones first."""

from __future__ import annotations

from acceptance import (
    methods_losses,
    methods_matrix,
    methods_natural,
    methods_pieces,
    methods_ranking,
    methods_text,
)

ITEMS = (
    methods_losses.losses,
    methods_losses.gradients,
    methods_losses.dirichlet,
    methods_pieces.adapters,
    methods_pieces.prompt_folders,
    methods_pieces.robust_weight,
    methods_pieces.exports,
    methods_matrix.matrix,
    methods_matrix.planted,
    *methods_natural.TRAINED.values(),
    *methods_ranking.EVALUATED.values(),
    methods_ranking.ranking,
    methods_text.text,
)
