"""Calibration against the reference case of evaluation plan 4.4, which was worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from acceptance.claims import Claim, Context, Figure, at_most, exactly, item
from ironclip.errors import IronClipError
from ironclip.evaluation.calibration import (
    adaptive_bins,
    brier_terms,
    classwise_ece,
    equal_width_bins,
    nll_terms,
)
from ironclip.evaluation.ranking import aurc, auroc, excess_aurc

PROBS = np.array(
    [
        [0.50, 0.30, 0.20],
        [0.60, 0.30, 0.10],
        [0.40, 0.35, 0.25],
        [0.10, 0.80, 0.10],
        [0.05, 0.05, 0.90],
        [0.20, 0.20, 0.60],
        [0.0, 1.0, 0.0],
        [0.70, 0.20, 0.10],
        [0.30, 0.45, 0.25],
        [0.05, 0.10, 0.85],
    ]
)
LABELS = np.array([0, 1, 1, 1, 2, 2, 1, 0, 1, 0])
GIVEN = {
    "ECE": "0.25",
    "MCE": "0.40",
    "adaptive ECE": "0.17",
    "adaptive MCE": "0.35",
    "classwise ECE": "0.206667",
    "Brier": "0.443",
    "NLL": "0.793719",
    "AURC": "0.217460",
    "E-AURC": "0.152738",
    "AUROC": "0.642857",
    "confidence 1": "0.475",
}
"""As the plan prints them; a figure is right if it rounds to this."""


def figures() -> dict[str, float]:
    """Compute what the plan gives."""
    confidence, hits, ids = PROBS.max(axis=1), PROBS.argmax(axis=1) == LABELS, range(len(LABELS))
    with np.errstate(divide="ignore"):
        logits = np.log(PROBS)
    bins, adaptive = equal_width_bins(confidence, hits, 5), adaptive_bins(confidence, hits, ids, 5)
    return {
        "ECE": bins.ece,
        "MCE": bins.mce,
        "adaptive ECE": adaptive.ece,
        "adaptive MCE": adaptive.mce,
        "classwise ECE": float(np.mean(classwise_ece(PROBS, LABELS, 5))),
        "Brier": float(brier_terms(PROBS, LABELS).mean()),
        "NLL": float(nll_terms(logits, LABELS).mean()),
        "AURC": aurc(confidence, hits, ids),
        "E-AURC": excess_aurc(confidence, hits, ids),
        "AUROC": auroc(confidence[hits], confidence[~hits]),
        "confidence 1": equal_width_bins([0.95, 1.0], [True, False], 10).ece,
    }


@item(
    "calibration",
    claims=[
        Claim("reference", "calibration equals 4.4 to the last digit given: figures that do not", exactly(0)),
        Claim("edges", "confidence 0 and 1, edges, empty bins, one sample: figures that are off", exactly(0)),
        Claim("refused", "NaN, no samples, one class: what is not refused in words", exactly(0)),
        Claim(
            "torchmetrics", "equal to torchmetrics where no confidence is 1 or on an edge (difference)", at_most(1e-6)
        ),
    ],
    modules=["ironclip.evaluation.calibration", "ironclip.evaluation.ranking"],
)
def calibration(context: Context) -> Iterator[Figure]:
    found = figures()
    wrong = [name for name, text in GIVEN.items() if f"{found[name]:.{len(text) - 2}f}" != text]
    shown = ", ".join(f"{name} {found[name]:.{len(text) - 2}f}" for name, text in GIVEN.items())
    yield Figure("reference", len(wrong), f"{len(wrong)} of {len(GIVEN)}: {shown}"[:200])
    cases = {
        "confidence 0 in the first bin": equal_width_bins([0.0], [False], 5).counts == (1, 0, 0, 0, 0),
        "confidence 1 in the last": equal_width_bins([1.0], [True], 5).counts == (0, 0, 0, 0, 1),
        "an edge belongs to the left": equal_width_bins([0.4], [True], 5).counts == (0, 1, 0, 0, 0),
        "one sample": math.isclose(equal_width_bins([0.7], [True], 5).ece, 0.3),
        "empty bins have no gap": equal_width_bins([0.7], [True], 5).gaps.count(None) == 4,
    }
    off = [name for name, holds in cases.items() if not holds]
    yield Figure("edges", len(off), f"{len(off)} of {len(cases)} {', '.join(off)}".strip())
    refused = {
        "NaN": lambda: nll_terms([[np.nan, 0.0]], [0]),
        "no samples": lambda: equal_width_bins([], [], 5),
        "one class": lambda: nll_terms([[1.0]], [0]),
        "confidence above 1": lambda: equal_width_bins([1.5], [True], 5),
    }
    silent = []
    for name, call in refused.items():
        try:
            call()
            silent.append(name)
        except IronClipError:
            continue
    yield Figure("refused", len(silent), f"{len(silent)} of {len(refused)} {', '.join(silent)}".strip())
    yield _torchmetrics()


def _torchmetrics() -> Figure:
    try:
        import torch
        from torchmetrics.functional.classification import multiclass_calibration_error
    except ModuleNotFoundError:
        return Figure("torchmetrics", None, "torchmetrics is not installed")
    logits = np.random.default_rng(0).normal(size=(2000, 7)) * 2
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.random.default_rng(1).integers(0, 7, 2000)
    ours = equal_width_bins(probs.max(axis=1), probs.argmax(axis=1) == labels, 15).ece
    theirs = multiclass_calibration_error(torch.tensor(probs), torch.tensor(labels), num_classes=7, n_bins=15).item()
    return Figure("torchmetrics", abs(ours - theirs), f"ours {ours:.6f}, torchmetrics {theirs:.6f}")
