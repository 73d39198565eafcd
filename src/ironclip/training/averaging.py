"""A running average of the tuned parameters, kept in the optimiser's state, so that a checkpoint carries it along."""

from __future__ import annotations

import torch
from torch import Tensor

KEY = "average"


def keep_average(optimiser: torch.optim.Optimizer, decay: float) -> None:
    """After every step move the average to `decay * average + (1 - decay) * parameter`; it begins where they began."""
    first: dict[Tensor, Tensor] = {}

    def before(*_: object) -> None:
        # The state is left alone until the optimiser has set up its own: some take any entry for a sign that it is.
        for parameter in _parameters(optimiser):
            if KEY not in optimiser.state.get(parameter, {}):
                first[parameter] = parameter.detach().clone()

    @torch.no_grad()
    def after(*_: object) -> None:
        for parameter in _parameters(optimiser):
            state = optimiser.state[parameter]
            if KEY not in state:
                state[KEY] = first.pop(parameter)
            state[KEY].lerp_(parameter, 1 - decay)

    optimiser.register_step_pre_hook(before)
    optimiser.register_step_post_hook(after)


def average_of(optimiser: torch.optim.Optimizer, parameter: Tensor) -> Tensor:
    """Return a parameter's average; the parameter itself where none is kept, or no step was taken yet."""
    average: Tensor = optimiser.state.get(parameter, {}).get(KEY, parameter)
    return average


def _parameters(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]
