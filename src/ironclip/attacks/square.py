"""Square: random search over squares that shrink, by scores alone; masked gradients do not mislead it.

Source: Andriushchenko et al., ECCV 2020, arXiv:1912.00049, algorithms 1 to 3; budget and schedule as in AutoAttack
(evaluation plan 2.7). Deviations: each sample draws squares and signs of its own, where published code has one for the
whole batch; squares reach the lower and right edge, too; images may be rectangular.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ironclip.attacks.aiming import run_seeds, run_streams
from ironclip.attacks.base import Attack, State, register_attack
from ironclip.attacks.objectives import Objective
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError
from ironclip.randomness import SampleRandom

BLOCK = 256
"""Queries whose random numbers are drawn at once."""

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Iterations after which the share of pixels in a square is halved."""


@dataclass(frozen=True, kw_only=True)
class SquareState(State):
    """A search that stands at `best`, which before the first query is the start, not yet examined.

    Attributes:
        threat: The game.
        seeds: `[B]` int64, of the draws.
        draws: `[B, 256, K]` in [0, 1), for the block of queries under way.
        spent: Queries so far, the same for all rows.
        queries: int64 `[B]`, the same as a count of each row.
    """

    threat: ThreatModel
    seeds: Tensor
    draws: Tensor
    spent: int
    queries: Tensor


@register_attack("square", tags={"image", "score"})
@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Random search: a change of a square of pixels is kept where it raises the value.

    With the margin, its loss unless another is given, a point that breaks always raises it.

    Attributes:
        queries: Points to examine, the start included; each costs one forward.
        initial_share: Share of the pixels that the first square covers (p_init in the paper).
        rescale_schedule: Stretch or shrink the schedule of shares, which is made for 10,000 queries, to the budget.
        loss: The objective that an evaluation builds: "ce", "margin" or "dlr".
        restarts: How often to start afresh on survivors.
    """

    queries: int = 5000
    initial_share: float = 0.8
    rescale_schedule: bool = False
    loss: str = "margin"
    restarts: int = 1

    def __post_init__(self) -> None:
        if self.queries < 1 or self.restarts < 1:
            raise ConfigError(f"attack: {self.queries} queries, {self.restarts} restarts.", "Give at least 1 of each.")
        if not 0 < self.initial_share <= 1:
            raise ConfigError(f"attack.initial_share is {self.initial_share}.", "Give a share above 0, up to 1.")

    def share(self, iteration: int) -> float:
        """Return the share of pixels in the square of an iteration, the first of which has number 0."""
        if self.rescale_schedule:
            iteration = 10_000 * iteration // self.queries
        return float(self.initial_share / 2 ** sum(iteration > halving for halving in HALVINGS))

    def start(self, objective: Objective, pixels: Tensor, threat: ThreatModel, random: SampleRandom) -> SquareState:
        """Return the state at the start: stripes of random sign in linf, a grid of bumps in l2."""
        seeds = run_seeds(random, pixels.device)
        numbers = pixels.shape[1] + (2 if threat.norm == "linf" else 5)
        state = SquareState.fresh(
            pixels,
            threat=threat,
            seeds=seeds,
            draws=_draws(seeds, 0, numbers),
            spent=0,
            queries=torch.zeros(len(pixels), dtype=torch.int64, device=pixels.device),
        )
        return replace(state, best=_stripes(state, random) if threat.norm == "linf" else _bump_grid(state, random))

    def step(self, objective: Objective, state: State) -> SquareState:
        """Examine the start, then one change of a square after the other."""
        if not isinstance(state, SquareState):
            raise TypeError(f"Square cannot continue a {type(state).__name__}")
        point = state.best
        if state.spent:
            iteration = state.spent - 1
            block, position = divmod(iteration, BLOCK)
            if position == 0 and block:
                state = replace(state, draws=_draws(state.seeds, block, state.draws.shape[2]))
            propose = _linf_proposal if state.threat.norm == "linf" else _l2_proposal
            point = propose(state, state.draws[:, position], self.share(iteration))
        with torch.no_grad():
            evaluation = objective.evaluate(point)
        spent = state.spent + 1
        return state.examined(
            point,
            evaluation,
            backward=False,
            queries=state.queries + 1,
            draws=state.draws,
            spent=spent,
            done=spent == self.queries,
        )


# linf: squares of one colour, at the edge of the ball


def _stripes(state: SquareState, random: SampleRandom) -> Tensor:
    """Move every pixel to an edge of the ball, the same one along each column and channel."""
    _, channels, _, width = state.origin.shape
    signs = _signs(random.uniform((channels, 1, width), 0, 1, "start").to(state.origin))
    return state.threat.project(state.origin + state.threat.radius * signs, state.origin)


def _linf_proposal(state: SquareState, draws: Tensor, share: float) -> Tensor:
    """Move a square of the best point to an edge of the ball, each channel to an edge of its own."""
    height, width = state.origin.shape[-2:]
    side = min(max(round(math.sqrt(share * height * width)), 1), height, width)
    inside = _Window.drawn(draws[:, :2], side, height, width).inside
    signs = _signs(draws[:, 2:, None, None].to(state.origin))
    return state.threat.project(state.best + 2 * state.threat.radius * signs * inside, state.origin)


# l2: bumps that take their length from another window, always on the sphere


def _bump_grid(state: SquareState, random: SampleRandom) -> Tensor:
    """Tile the image with bumps of random sign and orientation, five along its shorter side."""
    count, channels, height, width = state.origin.shape
    side = max(min(height, width) // 5, 1)
    down, across = height // side, width // side
    draws = random.uniform((down, across, channels + 1), 0, 1, "start").to(state.origin)
    tiles = _bumps(side, state.origin)[_flags(draws[..., -1])][:, :, :, None]  # [B, down, across, 1, side, side]
    signed = tiles * _signs(draws[..., :-1])[..., None, None]
    grid = signed.permute(0, 3, 1, 4, 2, 5).reshape(count, channels, down * side, across * side)
    delta = torch.zeros_like(state.origin)
    top, left = (height - down * side) // 2, (width - across * side) // 2
    delta[:, :, top : top + down * side, left : left + across * side] = grid
    return _on_sphere(state, delta)


def _l2_proposal(state: SquareState, draws: Tensor, share: float) -> Tensor:
    """Add a bump to a window of the best perturbation and empty another window, whose length the first one gets."""
    channels, height, width = state.origin.shape[1:]
    side = max(round(math.sqrt(share * height * width)), 3)
    side = min(side + 1 - side % 2, height, width)
    window = _Window.drawn(draws[:, :2], side, height, width)
    other = _Window.drawn(draws[:, 2:4], side, height, width)
    signs, transposed = _signs(draws[:, 4:-1, None, None].to(state.origin)), _flags(draws[:, -1])

    delta = state.best - state.origin
    old = delta * window.inside
    bump = window.place(_bumps(side, state.origin)[transposed]) * signs
    new = _unit(bump + _unit(old, (2, 3)), (2, 3))
    unused = (state.threat.radius**2 - delta.square().sum((1, 2, 3), keepdim=True)).clamp(min=0) / channels
    in_windows = (delta * (window.inside | other.inside)).square().sum((1, 2, 3), keepdim=True)
    rest = delta * ~(window.inside | other.inside)
    return _on_sphere(state, rest + new * (unused + in_windows).sqrt())


def _bumps(side: int, like: Tensor) -> Tensor:
    """Return a bump of unit length and its transpose, `[2, side, side]`: half of it a pyramid up, half of it down."""
    upper = side // 2
    bump = torch.cat([_pyramid(upper, side), -_pyramid(side - upper, side)])
    bump = _unit(bump, (0, 1))
    return torch.stack([bump, bump.T]).to(like)


def _pyramid(height: int, width: int) -> Tensor:
    """Stack rectangles around the middle, the k-th of 1/(k + 1)^2, `[height, width]` of unit length."""
    rings = max(height // 2, width // 2) + 1
    heights = (1 / torch.arange(1, rings + 1, dtype=torch.float64).square()).flip(0).cumsum(0).flip(0)
    down, across = (torch.arange(length) - length // 2 for length in (height, width))
    return _unit(heights[torch.maximum(down.abs()[:, None], across.abs()[None, :])], (0, 1))


def _on_sphere(state: SquareState, delta: Tensor) -> Tensor:
    """Scale perturbations to the radius and cut them to the box."""
    return (state.origin + state.threat.radius * _unit(delta, (1, 2, 3))).clamp(0, 1)


def _unit(delta: Tensor, dims: tuple[int, ...]) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(delta, dim=dims, keepdim=True)
    return delta / (length + 1e-12)


# Draws


def _draws(seeds: Tensor, block: int, numbers: int) -> Tensor:
    """Draw so many numbers a query for a block of queries, `[B, 256, numbers]` in [0, 1)."""
    return run_streams(seeds, block).uniform((BLOCK, numbers), 0, 1, "squares").to(seeds.device)


@dataclass(frozen=True)
class _Window:
    """A square in each image: offsets from its corner to each row and column, and where it is, `[B, 1, H, W]` bool."""

    down: Tensor
    across: Tensor
    side: int
    inside: Tensor

    @classmethod
    def drawn(cls, draws: Tensor, side: int, height: int, width: int) -> _Window:
        """Place a square of that side anywhere in the image by two numbers of [0, 1) a row."""
        places = torch.tensor([height - side + 1, width - side + 1], device=draws.device)
        # In float32 a number just below 1 times the places may round up to one place too many.
        corner = (draws.double() * places).long()
        down = torch.arange(height, device=draws.device) - corner[:, :1]
        across = torch.arange(width, device=draws.device) - corner[:, 1:]
        rows, columns = ((offset >= 0) & (offset < side) for offset in (down, across))
        return cls(down, across, side, (rows[:, :, None] & columns[:, None, :])[:, None])

    def place(self, squares: Tensor) -> Tensor:
        """Put squares `[B, side, side]` into images that are 0 elsewhere, `[B, 1, H, W]`."""
        row = torch.arange(len(squares), device=squares.device)[:, None, None]
        down, across = (offset.clamp(0, self.side - 1) for offset in (self.down, self.across))
        return squares[row, down[:, :, None], across[:, None, :]][:, None] * self.inside


def _signs(draws: Tensor) -> Tensor:
    return torch.where(draws < 0.5, -1.0, 1.0).to(draws)


def _flags(draws: Tensor) -> Tensor:
    return (draws < 0.5).long()
