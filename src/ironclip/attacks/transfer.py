"""Points that were made elsewhere, judged as if an attack had found them: transfer, universal perturbations, defences.

An attack on a surrogate is run to its end without a look at the victim: an early exit would leave points that have
just crossed the surrogate's boundary, and those transfer badly. Source: evaluation plan 2.11 and 2.13 (level L0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ironclip.attacks.base import Attack, State
from ironclip.attacks.driver import (
    DriverSettings,
    Outcome,
    exact_float32,
    run_attack,
    untouched_random_state,
)
from ironclip.attacks.objectives import Objective
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError, ShapeError
from ironclip.randomness import SampleRandom


@dataclass(frozen=True, kw_only=True)
class _Given(Attack):
    """An attack that examines one point a sample, and that is known beforehand."""

    name: ClassVar[str] = "given"
    loss: str = "margin"
    restarts: int = 1
    points: Mapping[str, Tensor] = field(repr=False, hash=False)

    def start(self, objective: Objective, pixels: Tensor, threat: ThreatModel, random: SampleRandom) -> State:
        """Return the state before the only look."""
        points = [self.points[key] for key in random.keys]
        point = torch.stack(points).to(pixels) if points else pixels
        return _GivenState.fresh(pixels, point=point)

    def step(self, objective: Objective, state: State) -> State:
        """Examine the point."""
        if not isinstance(state, _GivenState):
            raise TypeError(f"given points cannot continue a {type(state).__name__}")
        with torch.no_grad():
            evaluation = objective.evaluate(state.point)
        return state.examined(state.point, evaluation, backward=False, done=True)


@dataclass(frozen=True, kw_only=True)
class _GivenState(State):
    point: Tensor


def judge(
    objective: Objective,
    points: Tensor,
    pixels: Tensor,
    keys: Sequence[str],
    threat: ThreatModel,
    *,
    settings: DriverSettings | None = None,
) -> Outcome:
    """Say what given points do to a model, by the driver's rules: ball, box, float32, ties.

    Args:
        objective: Of the model that is judged, for these rows.
        points: `[N, 3, H, W]`, one a sample; one outside ball or box counts as `invalid`, and is no success.
        pixels: `[N, 3, H, W]`, the clean images.
        keys: One stable key a sample, unique.
        threat: The game.
        settings: Tile and the like.

    Raises:
        ShapeError: Not one point an image.
        ConfigError: Two samples have the same key.
    """
    if points.shape != pixels.shape:
        raise ShapeError(
            f"points of shape {tuple(points.shape)} for images of {tuple(pixels.shape)}.", "Give one point an image."
        )
    if len(set(keys)) < len(keys):
        raise ConfigError(f"{len(keys) - len(set(keys))} sample keys occur twice.", "Give each sample its own key.")
    given = _Given(points=dict(zip(keys, points.detach().cpu(), strict=True)))
    return run_attack(given, objective, pixels, keys, threat, seed=0, settings=settings)


def craft(
    attack: Attack,
    objective: Objective,
    pixels: Tensor,
    keys: Sequence[str],
    threat: ThreatModel,
    *,
    seed: int,
    settings: DriverSettings | None = None,
) -> Tensor:
    """Run an attack to its end on every sample and return its points, `[N, 3, H, W]` on the CPU.

    Args:
        attack: Settings of the attack.
        objective: Of the surrogate, for these rows.
        pixels: Float32 `[N, 3, H, W]` in [0, 1].
        keys: One stable key a sample.
        threat: The game.
        seed: Of random starts.
        settings: Tile and precision of the search.
    """
    settings, found = settings or DriverSettings(), []
    streams = SampleRandom(seed, keys, attack.name)
    with untouched_random_state(), exact_float32(objective.device), objective.computing(settings.search_dtype):
        for rows in torch.arange(len(pixels)).split(settings.tile):
            padding = rows[:1].repeat(-len(rows) % settings.granule)
            tile = torch.cat([rows, padding])
            images = pixels[tile].to(objective.device)
            points = attack.perturb(objective.take(tile.to(objective.device)), images, threat, streams.take(tile))
            found.append(points[: len(rows)].cpu())
    return torch.cat(found) if found else pixels


def transfer(
    attack: Attack,
    surrogate: Objective,
    victim: Objective,
    pixels: Tensor,
    keys: Sequence[str],
    threat: ThreatModel,
    *,
    seed: int,
    settings: DriverSettings | None = None,
) -> Outcome:
    """Attack one model and judge another one by what came out.

    For a defended victim whose undefended model is the surrogate this is the static evaluation (level L0): an upper
    bound of its robustness that says nothing about an adversary who knows the defence.

    Args:
        attack: Settings; `mi_di` is made for this.
        surrogate: What the attack climbs.
        victim: What the points are judged by.
        pixels: Float32 `[N, 3, H, W]` in [0, 1].
        keys: One stable key a sample, unique.
        threat: The game.
        seed: Of random starts.
        settings: Tile and precision of the search.

    Returns:
        The outcome on the victim; passes through the surrogate are not in its counts.
    """
    points = craft(attack, surrogate, pixels, keys, threat, seed=seed, settings=settings)
    return judge(victim, points, pixels, keys, threat, settings=settings)
