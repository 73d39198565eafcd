"""Working copies of a tower's parameters, kept while the parameters stay what they were (decision 003)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim.optimizer import register_optimizer_step_post_hook

from ironclip.models.adapters import TowerAdapters
from ironclip.models.fast_blocks import TowerWeights
from ironclip.models.prompts import Prompts


def _count_fused_step(optimiser: torch.optim.Optimizer, *_: object) -> None:
    """Count the versions of parameters up where a fused optimiser, alone of all in-place updates, has not."""
    for group in optimiser.param_groups:
        if group.get("fused"):
            for parameter in group["params"]:
                increment_version(parameter)


register_optimizer_step_post_hook(_count_fused_step)

W = TypeVar("W", bound=TowerWeights)


class FastTower(ABC, Generic[W]):
    """A tower's working copies, one a precision, refreshed when the parameters change.

    Args:
        prompts: Whose tokens or words the tower reads, or None.
        adapters: Of the tower, or None.

    Attributes:
        fused: Attend by torch's scaled_dot_product_attention.
        checkpointing: Where the tower or its prompts are tuned, keep the inputs of its blocks only, and run the blocks
            again in the backward pass. Attacks, which tune nothing, keep what they need.
    """

    def __init__(self, prompts: Prompts | None = None, adapters: TowerAdapters | None = None) -> None:
        self.prompts, self.adapters = prompts, adapters
        self.fused = self.checkpointing = False
        self._copies: dict[torch.dtype, tuple[object, W]] = {}

    @abstractmethod
    def packed(self) -> list[Tensor]:
        """Return the parameters of the tower that `pack` reads, adapters apart."""

    @abstractmethod
    def pack(self, dtype: torch.dtype) -> W:
        """Cast the parameters to the working precision; differentiable."""

    def weights(self, dtype: torch.dtype) -> W:
        """Return working weights: a fresh differentiable cast where gradients are wanted, else the kept copy."""
        parameters = self.packed() + ([] if self.adapters is None else list(self.adapters.parameters()))
        tuned = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters)
        weights = self.pack(dtype) if tuned or self.gates is not None else self._kept(dtype, parameters)
        if self.checkpointing and (tuned or self._prompts_are_tuned):
            weights = replace(weights, recompute=True)
        return replace(weights, fused=True) if self.fused else weights

    @property
    def gates(self) -> Tensor | None:
        """Factors of the adapters while some are dropped, `[B, blocks, 2]`."""
        return None if self.adapters is None else self.adapters.gates

    @property
    def _prompts_are_tuned(self) -> bool:
        prompts = () if self.prompts is None else self.prompts.parameters()
        return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in prompts)

    def _kept(self, dtype: torch.dtype, parameters: list[Tensor]) -> W:
        # In-place updates (optimisers, load_state_dict) count the version up; moves and swaps change the address.
        state = [(parameter._version, parameter.data_ptr()) for parameter in parameters]
        kept, copy = self._copies.get(dtype, (None, None))
        if copy is None or kept != state:
            # The copy outlives the caller's inference mode, whose tensors no attack could differentiate through.
            with torch.inference_mode(False), torch.no_grad():
                copy = self.pack(dtype)
            self._copies[dtype] = (state, copy)
        return copy
