"""Which wrong answer a targeted adversary wants. Source: evaluation plan 2.10."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from ironclip.errors import ConfigError, ShapeError
from ironclip.randomness import SampleRandom

_RULES = ("next", "least-likely", "random")


def choose_targets(rule: str, logits: Tensor, labels: Tensor, random: SampleRandom) -> Tensor:
    """Choose a target for each sample, never its label.

    Args:
        rule: "next" (the largest logit but the label's), "least-likely" (the smallest), "random" (uniform, from the
            sample's stream), or "fixed:3" (class 3; the next class by index for samples of class 3).
        logits: `[B, C]` of the clean images, C at least 2.
        labels: `[B]` int64.
        random: The samples' streams.

    Returns:
        `[B]` int64, for `Misclassify(classifier, labels, loss="ce_t", targets=...)`.

    Raises:
        ConfigError: No such rule, or no such class.
        ShapeError: Fewer than two classes.
    """
    classes = logits.shape[1]
    if classes < 2:
        raise ShapeError(f"{classes} class to choose from.", "A target needs at least two classes.")
    own = torch.nn.functional.one_hot(labels, classes).bool()
    if rule == "next":
        return logits.masked_fill(own, -torch.inf).argmax(dim=1)
    if rule == "least-likely":
        return logits.masked_fill(own, torch.inf).argmin(dim=1)
    if rule == "random":
        steps = [1 + int(random.generator(row, "target").integers(classes - 1)) for row in range(len(labels))]
        return (labels + torch.tensor(steps, dtype=labels.dtype, device=labels.device)) % classes
    fixed = re.fullmatch(r"fixed:(\d+)", rule)
    if fixed is None:
        raise ConfigError(f'no rule "{rule}" for targets.', f'Give one of {", ".join(_RULES)}, or "fixed:3".')
    target = int(fixed[1])
    if target >= classes:
        raise ConfigError(f"the target is class {target} of {classes}.", f"Give a class from 0 to {classes - 1}.")
    return torch.where(labels == target, (labels + 1) % classes, target)
