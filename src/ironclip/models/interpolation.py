"""Weights between the original and the robust model: more clean accuracy for less robustness, without training.

Source: Wortsman et al., CVPR 2022, arXiv:2109.01903 (WiSE-FT); ZSRobust `--mix_alpha` and RobustVLM `--beta`, whose
weight stands before the robust model in the one and, by version, before either in the other. Here it is always the
share of the robust model. Deviations: a model whose text tower was tuned is interpolated there too.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from ironclip.errors import ConfigError, ValueRangeError
from ironclip.models._weights import tensors_sha256
from ironclip.models.clip import ModelSpec

Opened = tuple[nn.Module, ModelSpec]
"""An open_clip model, and where it comes from."""


def check_robust_weight(robust_weight: float) -> None:
    """Refuse a weight outside [0, 1].

    Raises:
        ValueRangeError: It is, or is NaN.
    """
    if not 0 <= robust_weight <= 1:
        raise ValueRangeError(
            f"robust weight {robust_weight:g}, expected a number in [0, 1].",
            "0 is the original model, 1 the robust one.",
        )


def interpolate(original: Opened, robust: Opened, robust_weight: float) -> Opened:
    """Return `(1 - w) * original + w * robust`, tensor by tensor, in float32; the endpoints are the inputs themselves.

    Tensors that tuning left alone stay as they are, bit for bit.

    Args:
        original: The model before its tuning.
        robust: The model after it.
        robust_weight: w, in [0, 1].

    Raises:
        ValueRangeError: w is outside [0, 1].
        ConfigError: The two are not one model before and after: architecture, preprocessing or statistics of batch
            norms differ.
    """
    check_robust_weight(robust_weight)
    (before, before_spec), (after, after_spec) = original, robust
    first, last = before.state_dict(), after.state_dict()
    shapes = [{name: tensor.shape for name, tensor in tensors.items()} for tensors in (first, last)]
    activations = [bool(spec.architecture.get("quick_gelu")) for spec in (before_spec, after_spec)]
    unlike = {
        "architecture": shapes[0] != shapes[1] or activations[0] != activations[1],
        "preprocessing": before_spec.preprocessing != after_spec.preprocessing,
        # They belong to the weights between which they were counted; new ones would take the training data.
        "statistics of batch norms": shapes[0] == shapes[1] and _statistics_differ(first, last),
    }
    if any(unlike.values()):
        named = ", ".join(name for name, differs in unlike.items() if differs)
        raise ConfigError(
            f"{before_spec.origin} and {after_spec.origin} differ in {named}: nothing lies between them.",
            "Interpolate between a model and what tuning made of it.",
        )
    if robust_weight in (0, 1):
        return original if robust_weight == 0 else robust
    clip = copy.deepcopy(after)
    with torch.no_grad():
        for name, tensor in clip.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.lerp(first[name].float(), last[name].float(), robust_weight))
    return clip, replace(after_spec, sha256=tensors_sha256(clip.state_dict()))


def _statistics_differ(first: dict[str, Tensor], last: dict[str, Tensor]) -> bool:
    names = [name for name in first if name.endswith((".running_mean", ".running_var"))]
    return not all(torch.equal(first[name], last[name]) for name in names)
