"""Muon for the matrices of the image tower and AdamW for the rest, as one optimiser; and the learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ironclip.errors import ConfigError
from ironclip.pretraining.recipe import ImagesSection

_MUON_MOMENTUM = 0.95
_BETAS = (0.9, 0.98)


class Optimisers:
    """Several optimisers over parameters of one model, with the interface of one.

    Args:
        parts: Each over parameters of its own.
    """

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """All groups."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        """Step each."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the states, numbered on through the parts."""
        state: dict[int, Any] = {}
        groups, first = [], 0
        for part in self.parts:
            own = part.state_dict()
            state |= {first + index: entry for index, entry in own["state"].items()}
            groups.append(own["param_groups"])
            first += _count(part)
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        first = 0
        for part, groups in zip(self.parts, saved["param_groups"], strict=True):
            last = first + _count(part)
            state = {index - first: entry for index, entry in saved["state"].items() if first <= index < last}
            part.load_state_dict({"state": state, "param_groups": groups})
            first = last


def _count(part: torch.optim.Optimizer) -> int:
    return sum(len(group["params"]) for group in part.param_groups)


def build_optimisers(parameters: Mapping[str, nn.Parameter], settings: ImagesSection) -> Optimisers:
    """Return the optimisers of the image tower; matrices decay, vectors, embeddings and the scale do not.

    Muon (Jordan et al., 2024) orthogonalises the momentum of a matrix; its step is scaled to the size of AdamW's
    (Liu et al., 2025, "Muon is scalable for LLM training"), so that both share one learning rate.

    Raises:
        ConfigError: This torch has no Muon.
    """
    matrices = {name: value for name, value in parameters.items() if ".resblocks." in name and value.ndim == 2}
    others = [value for name, value in parameters.items() if name not in matrices]
    decayed, plain = [value for value in others if value.ndim >= 2], [value for value in others if value.ndim < 2]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if settings.optimiser == "adamw":
        groups[0]["params"] = [*matrices.values(), *decayed]
        return Optimisers([torch.optim.AdamW(groups, lr=settings.lr, betas=_BETAS)])
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(
            f"torch {torch.__version__} has no Muon.", "Install torch 2.9 or later, or say optimiser: adamw."
        )
    muon = torch.optim.Muon(
        matrices.values(),
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        momentum=_MUON_MOMENTUM,
        adjust_lr_fn="match_rms_adamw",
    )
    return Optimisers([muon, torch.optim.AdamW(groups, lr=settings.lr, betas=_BETAS)])


def learning_rate(step: int, settings: ImagesSection) -> float:
    """Return the rate of step number `step` (from 0): linear warm-up, constant, then linearly towards 0."""
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    if step < settings.stable_steps:
        return settings.lr
    return settings.lr * (settings.steps - step) / (settings.steps - settings.stable_steps)
