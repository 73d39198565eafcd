"""Evaluation that can be trusted: one item for each group of claims, the cheap ones first."""

from __future__ import annotations

from acceptance import (
    evaluation_affine,
    evaluation_calibration,
    evaluation_convnet,
    evaluation_exact,
    evaluation_independent,
    evaluation_masks,
    evaluation_natural,
    evaluation_peers,
    evaluation_sandwich,
    evaluation_tuned,
    evaluation_uncertainty,
)

ITEMS = (
    evaluation_affine.affine,
    evaluation_affine.relu_net,
    evaluation_affine.square_gap,
    evaluation_sandwich.sandwich,
    evaluation_calibration.calibration,
    evaluation_masks.masked_models,
    evaluation_masks.controls,
    evaluation_exact.lists_identical,
    evaluation_exact.lists_killed,
    evaluation_peers.peers_exact,
    evaluation_convnet.python_models,
    evaluation_independent.ten_thousand,
    evaluation_tuned.compaction,
    evaluation_uncertainty.uncertainty,
    evaluation_peers.peers_tuned,
    evaluation_natural.natural_standard,
    evaluation_natural.base_to_new,
    evaluation_natural.escalation,
)
