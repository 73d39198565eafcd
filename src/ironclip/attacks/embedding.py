"""The label-free attack: move the embedding of an image as far as it goes, without a look at labels or prompts.

It shows whether a defence protects more than its own prompts. Source: the inner problem of FARE, Schlarmann et al.,
ICML 2024, arXiv:2402.12336, run at test time; evaluation plan 2.9. Deviation: the farthest iterate is kept, not the
last.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from ironclip.attacks.base import Attack, State, improves, register_attack
from ironclip.attacks.objectives import Evaluation, Objective, input_gradient
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError
from ironclip.losses.embedding import squared_distance
from ironclip.randomness import SampleRandom


@dataclass(frozen=True, kw_only=True)
class EmbeddingState(State):
    """The point to be looked at next, the farthest one so far with its distance `[B]`, and where it all began."""

    x: Tensor
    target: Tensor
    farthest: Tensor
    distance: Tensor
    threat: ThreatModel
    steps_left: int


@register_attack("embedding", tags={"white-box", "label-free"})
@dataclass(frozen=True, kw_only=True)
class EmbeddingAttack(Attack):
    """Gradient ascent on the distance between the embeddings of the attacked and the clean image.

    The only point that is examined for a wrong answer is the farthest one, once the search is over; so labels and
    prompts score the attack, and do not guide it. Where the model has no embedding its logits take the place.

    Attributes:
        steps: Gradient steps.
        rel_step_size: Step as a share of eps.
        distance: "l2" (squared, of raw embeddings) or "cosine" (one minus it).
        loss: The objective that an evaluation builds, by which the result is scored.
        restarts: How often to start afresh on survivors; the start is random, since at the image itself the gradient
            is zero.
    """

    steps: int = 50
    rel_step_size: float = 0.25
    distance: Literal["l2", "cosine"] = "l2"
    loss: str = "margin"
    restarts: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise ConfigError(f"attack: {self.steps} steps, {self.restarts} restarts.", "Give at least 1 of each.")
        if not 0 < self.rel_step_size < float("inf"):
            raise ConfigError(f"attack.rel_step_size is {self.rel_step_size}.", "Give a positive share of eps.")
        if self.distance not in ("l2", "cosine"):
            raise ConfigError(f'attack.distance is "{self.distance}".', "Give one of l2, cosine.")

    def check(self, threat: ThreatModel) -> None:
        """Refuse a game with a target, to which distance does not lead.

        Raises:
            ConfigError: The goal is "targeted".
        """
        if threat.goal == "targeted":
            raise ConfigError("embedding leads away from the image, not to a target.", "Use apgd in a targeted game.")

    def loss_used(self, classes: int) -> str:
        """Name the distance: no loss of logits is followed."""
        return f"embedding_{self.distance}"

    def start(self, objective: Objective, pixels: Tensor, threat: ThreatModel, random: SampleRandom) -> EmbeddingState:
        """Embed the clean image, and return the state at the first point."""
        with torch.no_grad():
            target = objective.embed(pixels)
        x = threat.random_start(pixels, random)
        state = EmbeddingState.fresh(
            pixels,
            x=x,
            target=target,
            farthest=x,
            distance=pixels.new_full((len(pixels),), -torch.inf),
            threat=threat,
            steps_left=self.steps,
        )
        return replace(state, forwards=state.forwards + 1)

    def step(self, objective: Objective, state: State) -> EmbeddingState:
        """Look at the current point and move on; after the last step examine the farthest one."""
        if not isinstance(state, EmbeddingState):
            raise TypeError(f"the embedding attack cannot continue a {type(state).__name__}")
        away = _Away(objective, state.target, self.distance)
        if state.steps_left == 0:
            with torch.no_grad():
                value = away(state.x)
                state = self._looked(state, value)
                evaluation = objective.evaluate(state.farthest)
            return state.examined(state.farthest, evaluation, backward=False, done=True)
        gradient, seen = input_gradient(away, state.x)
        state = self._looked(state, seen.value)
        step = float(Fraction(self.rel_step_size) * Fraction(state.threat.radius))
        moved = state.threat.project(state.x + step * state.threat.steepest_ascent(gradient), state.origin)
        return replace(state, x=moved, backwards=state.backwards + 1, steps_left=state.steps_left - 1)

    def result(self, state: State) -> Tensor:
        """Return the farthest point."""
        return state.farthest if isinstance(state, EmbeddingState) else state.best

    def result_value(self, state: State) -> Tensor:
        """Return its distance."""
        return state.distance if isinstance(state, EmbeddingState) else state.best_value

    def _looked(self, state: EmbeddingState, distance: Tensor) -> EmbeddingState:
        """Return the state after a distance has been measured at `x`."""
        farther = improves(distance, state.distance)
        return replace(
            state,
            farthest=torch.where(farther.view(-1, 1, 1, 1), state.x, state.farthest),
            distance=torch.where(farther, distance, state.distance),
            forwards=state.forwards + 1,
        )


@dataclass(frozen=True)
class _Away(Objective):
    """The distance from where the clean image is embedded."""

    objective: Objective
    target: Tensor
    distance: str

    def evaluate(self, pixels: Tensor) -> Evaluation:
        embedding = self.objective.embed(pixels)
        if self.distance == "l2":
            value = squared_distance(embedding, self.target)
        else:
            value = 1 - torch.nn.functional.cosine_similarity(embedding, self.target, dim=1)
        return Evaluation(value, torch.zeros_like(value, dtype=torch.bool))

    def take(self, rows: Tensor) -> _Away:
        return replace(self, objective=self.objective.take(rows), target=self.target[rows])
