"""The contract of an attack: settings, `start`, `step`, and a state whose rows do not know of each other."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ironclip.attacks.objectives import Evaluation, Objective, frozen, loss_used
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ShapeError
from ironclip.randomness import SampleRandom
from ironclip.registry import Registry


@dataclass(frozen=True, kw_only=True)
class State:
    """Where an attack stands; tensors have one row a sample, everything else is shared by the rows.

    Attributes:
        origin: `[B, 3, H, W]`, clean pixels.
        candidate: `[B, 3, H, W]`, the point examined last.
        value: `[B]`, the objective there.
        claimed: `[B]` bool, whether the attack holds the candidate for a success; the driver verifies.
        best: `[B, 3, H, W]`, the examined point of the largest value.
        best_value: `[B]`, the objective there.
        forwards: `[B]` int64, passes through the model so far.
        backwards: `[B]` int64, gradients so far.
        done: Nothing is left to examine.
        radius: `[B]`, smallest break so far (minimal-norm attacks).
        queries: `[B]` int64, budget spent (score-based attacks).
    """

    origin: Tensor
    candidate: Tensor
    value: Tensor
    claimed: Tensor
    best: Tensor
    best_value: Tensor
    forwards: Tensor
    backwards: Tensor
    done: bool = False
    radius: Tensor | None = None
    queries: Tensor | None = None

    @classmethod
    def fresh(cls, origin: Tensor, **more: Any) -> Self:
        """Return a state in which nothing has been examined."""
        count, device = len(origin), origin.device
        never = torch.full((count,), -torch.inf, device=device)
        zero = torch.zeros(count, dtype=torch.int64, device=device)
        return cls(
            origin=origin,
            candidate=origin,
            value=never,
            claimed=torch.zeros(count, dtype=torch.bool, device=device),
            best=origin,
            best_value=never,
            forwards=zero,
            backwards=zero,
            **more,
        )

    def __len__(self) -> int:
        return len(self.origin)

    def take(self, rows: Tensor) -> Self:
        """Return the state of the given rows, in that order (repeats allowed)."""
        return dataclasses.replace(self, **{name: value[rows] for name, value in self._tensors().items()})

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Join states that stand at the same point; what is not a tensor is taken from the first."""
        joined: dict[str, Any] = {
            name: torch.cat([getattr(part, name) for part in parts]) for name in parts[0]._tensors()
        }
        return dataclasses.replace(parts[0], **joined)

    def examined(self, point: Tensor, evaluation: Evaluation, *, backward: bool, **more: Any) -> Self:
        """Return the state after a point was evaluated: candidate, claim, best and counters renewed."""
        better = improves(evaluation.value, self.best_value) | (self.forwards == 0)
        return dataclasses.replace(
            self,
            candidate=point,
            value=evaluation.value,
            claimed=evaluation.broken,
            best=torch.where(better.view(-1, 1, 1, 1), point, self.best),
            best_value=torch.where(better, evaluation.value, self.best_value),
            forwards=self.forwards + 1,
            backwards=self.backwards + int(backward),
            **more,
        )

    def _tensors(self) -> dict[str, Any]:
        fields = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: value for name, value in fields if isinstance(value, Tensor)}


def improves(value: Tensor, best: Tensor) -> Tensor:
    """Say where a value beats the best so far, `[B]` bool: NaN beats nothing, and anything beats NaN."""
    return ~(value <= best) & ~value.isnan()


class Attack(ABC):
    """A frozen dataclass of settings with two functions; see `pgd.py` for a whole one.

    Attributes:
        name: Name in the registry.
        loss: Which loss an evaluation builds the objective from.
        restarts: How often to start afresh on what has survived.
    """

    name: ClassVar[str]
    loss: str
    restarts: int

    def check(self, threat: ThreatModel) -> None:  # noqa: B027  # most attacks can play every game
        """Refuse a game that these settings cannot play; raises an error in words."""

    def loss_used(self, classes: int) -> str:
        """Name the loss that the search follows with so many classes."""
        return loss_used(self.loss, classes)

    def for_restart(self, restart: int) -> Self:
        """Return the settings of a restart, counted from 0; the same unless the attack begins otherwise."""
        return self

    @abstractmethod
    def start(self, objective: Objective, pixels: Tensor, threat: ThreatModel, random: SampleRandom) -> State:
        """Return the state before the first step."""

    @abstractmethod
    def step(self, objective: Objective, state: State) -> State:
        """Examine a point for each row (setting candidate, value, claimed) and move on, until `state.done`."""

    def settled(self, state: State) -> bool:
        """Say whether the point that the attack returns is known; `done` unless the last point needs no look."""
        return state.done

    def result(self, state: State) -> Tensor:
        """Return the point that the attack stands for: the best one unless the attack says otherwise."""
        return state.best

    def result_value(self, state: State) -> Tensor:
        """Return the objective there, `[B]`, by which restarts are compared."""
        return state.best_value

    def perturb(self, objective: Objective, pixels: Tensor, threat: ThreatModel, random: SampleRandom) -> Tensor:
        """Attack a batch and return the result of the best restart, `[B, 3, H, W]`; without early exit.

        This is the loop for training and for users' own code. It keeps no score: an evaluation runs the driver.

        Raises:
            ShapeError: Not one key a row.
        """
        if len(random.keys) != len(pixels):
            raise ShapeError(f"{len(random.keys)} sample keys for {len(pixels)} images.", "Give one key an image.")
        result, value = pixels, None
        with frozen(objective.modules):
            for restart in range(self.restarts):
                streams = dataclasses.replace(random, scope=f"{random.scope}|{restart}")
                attack = self.for_restart(restart)
                state = attack.start(objective, pixels.detach(), threat, streams)
                while not attack.settled(state):
                    state = attack.step(objective, state)
                found, its_value = attack.result(state), attack.result_value(state)
                if value is None:
                    result, value = found, its_value
                else:
                    better = improves(its_value, value)
                    result = torch.where(better.view(-1, 1, 1, 1), found, result)
                    value = torch.where(better, its_value, value)
        return result.detach()


ATTACKS: Registry[Attack] = Registry("attack", "ironclip.attacks")
register_attack = ATTACKS.register
