"""What the best adversary can do to an `AffineTask`."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from ironclip.attacks.threat_model import ThreatModel
from made_up_classifiers import AffineTask
from oracles.affine import worst_margin_l2, worst_margin_linf


def worst_margins(task: AffineTask, threat: ThreatModel) -> np.ndarray:
    """Exact worst margins of all samples, positive where robust; in linf computed in fractions and then rounded."""
    weight, bias, pixels, labels = task.weight, task.bias, task.pixels.flatten(1), task.labels.tolist()
    if threat.norm == "linf":
        worst = [
            worst_margin_linf(weight.tolist(), bias.tolist(), x, y, Fraction(threat.radius))
            for x, y in zip(pixels.tolist(), labels, strict=True)
        ]
    else:
        worst = [
            worst_margin_l2(weight.double().numpy(), bias.double().numpy(), x, y, threat.radius)
            for x, y in zip(pixels.double().numpy(), labels, strict=True)
        ]
    return np.array([float(margin) for margin in worst])
