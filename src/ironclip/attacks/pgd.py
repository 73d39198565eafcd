"""PGD: projected gradient ascent in the linf or l2 ball.

Source: Madry et al., ICLR 2018, arXiv:1706.06083; momentum as in MI-FGSM, Dong et al., CVPR 2018, arXiv:1710.06081.
Deviations: the best iterate is kept, not the last, and success is tested at every iterate, the start included; `keep:
last` is as published, where the last iterate alone counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from ironclip.attacks.base import Attack, State, register_attack
from ironclip.attacks.objectives import Objective, input_gradient
from ironclip.attacks.threat_model import ThreatModel, parse_eps
from ironclip.errors import ConfigError
from ironclip.randomness import SampleRandom

_CHOICES = {"start_at": ("zero", "random"), "keep": ("best", "last")}


@dataclass(frozen=True, kw_only=True)
class PGDState(State):
    """A PGD run: the point to be examined next, the accumulated gradient, the steps to go."""

    x: Tensor
    velocity: Tensor
    threat: ThreatModel
    steps_left: int


@register_attack("pgd", tags={"image", "white-box"})
@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """Projected gradient ascent.

    Attributes:
        steps: Gradient steps; one more forward examines the last point.
        step_size: In pixel units, a number or a string such as "1/255"; None for `rel_step_size`.
        rel_step_size: Step as a share of eps; None for 1/4 in linf, 1/5 in l2.
        start_at: "zero" (the image itself), or "random": uniform in the linf ball, on the l2 sphere.
        momentum: Share of the accumulated gradient that a step keeps; gradients enter with unit mean magnitude.
        keep: "best" iterate by value, a success at any of them; or "last", a success there only.
        loss: The objective that an evaluation builds: "ce", "margin" or "dlr".
        restarts: How often to start afresh on survivors.
    """

    steps: int = 20
    step_size: str | float | None = None
    rel_step_size: float | None = None
    start_at: Literal["zero", "random"] = "random"
    momentum: float = 0.0
    keep: Literal["best", "last"] = "best"
    loss: str = "ce"
    restarts: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise ConfigError(f"attack: {self.steps} steps, {self.restarts} restarts.", "Give at least 1 of each.")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f'attack.{name} is "{getattr(self, name)}".', f"Give one of {', '.join(choices)}.")
        if self.step_size is not None and self.rel_step_size is not None:
            raise ConfigError(
                f"attack: step_size is {self.step_size} and rel_step_size {self.rel_step_size}.",
                "Set one of them to null.",
            )
        # The bound on a step depends on the norm, which only the threat model knows.
        if self.step_size is not None and parse_eps(self.step_size, "l2", name="attack.step_size") <= 0:
            raise ConfigError(f"attack.step_size is {self.step_size}.", 'Give a positive step such as "1/255".')
        if self.rel_step_size is not None and not 0 < self.rel_step_size < float("inf"):
            raise ConfigError(f"attack.rel_step_size is {self.rel_step_size}.", "Give a positive share of eps.")
        if not 0 <= self.momentum < float("inf"):
            raise ConfigError(f"attack.momentum is {self.momentum}.", "Give a share of at least 0.")

    def step_length(self, threat: ThreatModel) -> float:
        """Return the step in pixel units.

        Raises:
            ValueRangeError: A step above 1 in linf.
        """
        if self.step_size is not None:
            return float(parse_eps(self.step_size, threat.norm, name="attack.step_size"))
        share = self.rel_step_size if self.rel_step_size is not None else {"linf": 1 / 4, "l2": 1 / 5}[threat.norm]
        return float(Fraction(share) * Fraction(threat.radius))

    def check(self, threat: ThreatModel) -> None:
        """Refuse a step that is too long for the norm; see `step_length`."""
        self.step_length(threat)

    def first_point(self, pixels: Tensor, threat: ThreatModel, random: SampleRandom) -> Tensor:
        """Return where the ascent begins."""
        return pixels if self.start_at == "zero" else threat.random_start(pixels, random)

    def direction(self, velocity: Tensor, gradient: Tensor, threat: ThreatModel) -> tuple[Tensor, Tensor]:
        """Return the direction of the step and the new accumulated gradient."""
        if self.momentum:
            # No guard is added to the magnitude: 1e-12 is larger than the gradient of a confident model.
            magnitude = gradient.abs().mean(dim=(1, 2, 3), keepdim=True)
            velocity = self.momentum * velocity + gradient / torch.where(magnitude > 0, magnitude, 1)
        else:
            velocity = gradient
        return threat.steepest_ascent(velocity), velocity

    def start(self, objective: Objective, pixels: Tensor, threat: ThreatModel, random: SampleRandom) -> PGDState:
        """Return the state at the first point, which is not yet examined."""
        x = self.first_point(pixels, threat, random)
        return PGDState.fresh(pixels, x=x, velocity=torch.zeros_like(x), threat=threat, steps_left=self.steps)

    def step(self, objective: Objective, state: State) -> PGDState:
        """Examine the current point and, while steps are left, move on from it."""
        if not isinstance(state, PGDState):
            raise TypeError(f"PGD cannot continue a {type(state).__name__}")
        if state.steps_left == 0:
            with torch.no_grad():
                evaluation = objective.evaluate(state.x)
            return state.examined(state.x, evaluation, backward=False, done=True)
        gradient, evaluation = input_gradient(objective, state.x)
        if self.keep == "last":
            evaluation = replace(evaluation, broken=torch.zeros_like(evaluation.broken))
        direction, velocity = self.direction(state.velocity, gradient, state.threat)
        moved = state.threat.project(state.x + self.step_length(state.threat) * direction, state.origin)
        return state.examined(
            state.x, evaluation, backward=True, x=moved, velocity=velocity, steps_left=state.steps_left - 1
        )

    def settled(self, state: State) -> bool:
        """Say whether the result is known: with `keep: last` and nothing to compare, once the last step is taken."""
        early = self.keep == "last" and self.restarts == 1
        return state.done or (early and isinstance(state, PGDState) and state.steps_left == 0)

    def result(self, state: State) -> Tensor:
        """Return the best or the last iterate."""
        return state.x if self.keep == "last" and isinstance(state, PGDState) else state.best

    def result_value(self, state: State) -> Tensor:
        """Return the objective there."""
        return state.value if self.keep == "last" else state.best_value


@register_attack("pgd_m", tags={"image", "white-box", "training"})
@dataclass(frozen=True, kw_only=True)
class TrainingPGD(PGD):
    """PGD as adversarial training runs it: few absolute steps from a clipped random start, last iterate.

    Variant M of methods 2.0.3 (TeCoA, PMG-AFT, AGFT, UCAT and others).
    """

    steps: int = 2
    step_size: str | float | None = "1/255"
    keep: Literal["best", "last"] = "last"


@register_attack("pgd_v", tags={"image", "white-box", "training"})
@dataclass(frozen=True, kw_only=True)
class RobustVLMPGD(TrainingPGD):
    """PGD as RobustVLM's code trains with it (FARE, Sim-CLIP): variant V of methods 2.0.3.

    The start is not clipped to [0, 1], and steps follow `v <- sign(momentum v + sign(g))`, which is the plain sign
    wherever the gradient is not exactly zero. Kept for faithful recipes; in linf only.
    """

    steps: int = 10
    momentum: float = 0.9

    def check(self, threat: ThreatModel) -> None:
        """Refuse another norm than linf.

        Raises:
            ConfigError: Another norm.
        """
        super().check(threat)
        if threat.norm != "linf":
            raise ConfigError(
                f"pgd_v steps along signs, which {threat.norm} has no use for.", "Use pgd or pgd_m in l2."
            )

    def first_point(self, pixels: Tensor, threat: ThreatModel, random: SampleRandom) -> Tensor:
        """Return a random start that may leave [0, 1], as published."""
        self.check(threat)
        return pixels if self.start_at == "zero" else threat.random_start(pixels, random, clip=False)

    def direction(self, velocity: Tensor, gradient: Tensor, threat: ThreatModel) -> tuple[Tensor, Tensor]:
        """Return the sign momentum, twice."""
        velocity = (self.momentum * velocity + gradient.sign()).sign()
        return velocity, velocity
