"""The driver: runs any attack over samples and alone decides what is broken.

It tiles, drops broken rows, verifies every claim in float32, settles ties in float64, checks the budget, counts. What
comes out for a sample is a function of (model, sample, threat model, attack, seed): not of tile, order, neighbours, or
whether broken rows were dropped, wherever `row_invariance` is 0.

Source: evaluation plan 1.1, 1.2, 6.1 to 6.6.
"""

from __future__ import annotations

import random as python_random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ironclip.attacks.base import Attack, State
from ironclip.attacks.objectives import Evaluation, Objective, frozen, input_gradient
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError, ShapeError, ValueRangeError
from ironclip.randomness import SampleRandom

GRANULE = 16
"""Tiles are multiples of this: below it, matrix products choose other kernels and rows differ in the last bit."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class DriverSettings:
    """How the driver runs; none of it may change a result where rows are independent.

    Attributes:
        tile: Rows a forward; rounded up to a multiple of 16.
        compact: Drop broken rows and merge survivors that stand at the same step.
        search_dtype: Precision of the search; verdicts are always float32.
        granule: The last tile is padded to a multiple of this; 16 where `row_invariance` is 0, else the whole tile.
    """

    tile: int = 64
    compact: bool = True
    search_dtype: torch.dtype = torch.float32
    granule: int = GRANULE

    def __post_init__(self) -> None:
        if self.tile < 1:
            raise ConfigError(f"a batch size of {self.tile}.", "Give a positive number; it is rounded up to a multiple of 16.")
        object.__setattr__(self, "tile", -(-self.tile // GRANULE) * GRANULE)


@dataclass
class Outcome:
    """What an attack did to each of N samples, in the order given; all tensors on the CPU.

    Attributes:
        adversarial: `[N, 3, H, W]`, the first verified break, else the point of largest value; the clean image where
            that was wrong already.
        broken: `[N]` bool, wrong on the clean image or made wrong within the budget, as verified in float32.
        clean: Evaluation of the clean images, float32.
        final: Evaluation of `adversarial`, float32.
        best_loss: `[N]`, largest value of the objective seen during the search.
        norm: `[N]` float64, length of the perturbation.
        iterations: `[N]` points examined up to the first verified break (1 is the start), -1 where there is none.
        restart: `[N]`, in which restart the adversarial was found, -1 for clean mistakes.
        forwards: `[N]`, backwards: `[N]`: passes spent, verification included.
        seconds: `[N]`, wall time, each tile's shared by its rows.
        near_tie: `[N]` bool, a verdict within the tie tolerance was settled in float64.
        false_claims: `[N]`, claims of the search that float32 did not confirm.
        invalid: `[N]` bool, a claim lay outside ball or box; it is no success.
    """

    adversarial: Tensor
    broken: Tensor
    clean: Evaluation
    final: Evaluation
    best_loss: Tensor
    norm: Tensor
    iterations: Tensor
    restart: Tensor
    forwards: Tensor
    backwards: Tensor
    seconds: Tensor
    near_tie: Tensor
    false_claims: Tensor
    invalid: Tensor


def run_attack(
    attack: Attack,
    objective: Objective,
    pixels: Tensor,
    keys: Sequence[str],
    threat: ThreatModel,
    *,
    seed: int,
    settings: DriverSettings | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Attack samples and say what became of each.

    Args:
        attack: Settings of the attack.
        objective: What it maximises, for these rows.
        pixels: Float32 `[N, 3, H, W]` in [0, 1].
        keys: One stable key a sample; all randomness hangs on it.
        threat: The game.
        seed: Seed of the run.
        settings: Tile, compaction, precision.
        progress: Called with (rows broken, rows still attacked) after each step.

    Raises:
        ShapeError: Not one key an image.
        ValueRangeError: Pixels are not float32 in [0, 1].
    """
    settings = settings or DriverSettings()
    if len(keys) != len(pixels):
        raise ShapeError(f"{len(keys)} sample keys for {len(pixels)} images.", "Give one key an image.")
    if pixels.dtype != torch.float32:
        raise ValueRangeError(f"pixels are {pixels.dtype}, expected float32 in [0, 1].", "For 8-bit images use pixels / 255.")
    low, high = (float(bound) for bound in torch.aminmax(pixels)) if pixels.numel() else (0.0, 0.0)
    if not (low >= 0 and high <= 1):
        raise ValueRangeError(
            f"pixels range from {low:.4g} to {high:.4g}, expected numbers in [0, 1].",
            "Give images before mean and std are applied (the model normalises inside); divide 0..255 by 255.",
        )
    with untouched_random_state(), frozen(objective.modules):
        return _Run(attack, objective, pixels, keys, threat, seed, settings).to_the_end(progress)


@contextmanager
def untouched_random_state() -> Iterator[None]:
    """Leave the global random states of Python, numpy and torch as found, whatever a model draws from them."""
    python, legacy, cpu = python_random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        python_random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


@dataclass
class _Run:
    """One attack under way: the verdicts so far, and the rows still standing."""

    attack: Attack
    objective: Objective
    pixels: Tensor
    keys: Sequence[str]
    threat: ThreatModel
    seed: int
    settings: DriverSettings
    outcome: Outcome = field(init=False)

    def to_the_end(self, progress: Progress | None) -> Outcome:
        count = len(self.pixels)
        clean = self._verify(self.pixels, torch.arange(count))
        self.outcome = Outcome(
            adversarial=self.pixels.clone(),
            broken=clean.broken.clone(),
            clean=clean,
            final=clean,
            best_loss=clean.value.clone(),
            norm=torch.zeros(count, dtype=torch.float64),
            iterations=torch.full((count,), -1),
            restart=torch.full((count,), -1),
            forwards=torch.ones(count, dtype=torch.int64),
            backwards=torch.zeros(count, dtype=torch.int64),
            seconds=torch.zeros(count, dtype=torch.float64),
            near_tie=torch.zeros(count, dtype=torch.bool),
            false_claims=torch.zeros(count, dtype=torch.int64),
            invalid=torch.zeros(count, dtype=torch.bool),
        )
        self.outcome.broken = self._settle(self.pixels, torch.arange(count), clean)
        self.outcome.clean = replace(clean, broken=self.outcome.broken.clone())
        attacked = torch.where(~self.outcome.broken)[0]
        best = torch.full((count,), -torch.inf)
        for restart in range(self.attack.restarts):
            rows = attacked[~self.outcome.broken[attacked]] if self.settings.compact else attacked
            if len(rows):
                self._restart(restart, rows, best, progress)
        survivors = torch.where(~self.outcome.broken)[0]
        self._judge(self.outcome.adversarial, survivors, iterations=-1)
        self.outcome.final = self._verify(self.outcome.adversarial, torch.arange(count))
        self.outcome.norm = self.threat.distance(self.outcome.adversarial, self.pixels)
        return self.outcome

    def _restart(self, restart: int, rows: Tensor, best: Tensor, progress: Progress | None) -> None:
        """Run the attack once over the given rows, all of them step by step together."""
        outcome = self.outcome
        streams = SampleRandom(self.seed, self.keys, f"{self.attack.name}|{restart}")
        state, seconds = self._tiled(
            rows,
            lambda tile, own: self.attack.start(
                self.objective.take(tile), self.pixels[tile].to(self._device), self.threat, streams.take(tile)
            ),
        )
        outcome.seconds[rows] += seconds
        examined = 0
        while not state.done:
            before = state
            state, seconds = self._tiled(
                rows, lambda tile, own, before=before: self.attack.step(self.objective.take(tile), before.take(own))
            )
            outcome.seconds[rows] += seconds
            examined += 1
            claims = state.claimed.cpu() & ~outcome.broken[rows]
            if claims.any():
                candidates = self.pixels.clone()
                candidates[rows[claims]] = state.candidate[claims.to(state.candidate.device)].cpu()
                confirmed = self._judge(candidates, rows[claims], iterations=examined)
                outcome.adversarial[confirmed] = candidates[confirmed]
                outcome.restart[confirmed] = restart
            standing = ~outcome.broken[rows]
            if progress:
                progress(int(outcome.broken.sum()), int(standing.sum()))
            if self.settings.compact and not standing.all():
                self._leave(rows, state, ~standing, best, restart)
                state, rows = state.take(torch.where(standing)[0].to(state.origin.device)), rows[standing]
                if not len(rows):
                    return
        self._leave(rows, state, torch.ones(len(rows), dtype=torch.bool), best, restart)

    def _leave(self, rows: Tensor, state: State, leaving: Tensor, best: Tensor, restart: int) -> None:
        """Book what the leaving rows have spent; keep the best point of those that survive."""
        outcome, index = self.outcome, leaving.to(state.origin.device)
        gone = rows[leaving]
        value = state.best_value[index].cpu().float()
        outcome.forwards[gone] += state.forwards[index].cpu()
        outcome.backwards[gone] += state.backwards[index].cpu()
        better = value > best[gone]
        best[gone] = torch.where(better, value, best[gone])
        outcome.best_loss[gone] = torch.maximum(outcome.best_loss[gone], value)
        kept = better & ~outcome.broken[gone]
        outcome.adversarial[gone[kept]] = state.best[index].cpu()[kept]
        outcome.restart[gone[kept]] = restart

    def _judge(self, points: Tensor, rows: Tensor, *, iterations: int) -> Tensor:
        """Verify points (given for all samples) at some rows; mark the breaks and return the rows that are broken."""
        if not len(rows):
            return rows
        outcome = self.outcome
        legal = self.threat.contains(points[rows], self.pixels[rows])
        outcome.invalid[rows] |= ~legal
        evaluation = self._verify(points, rows)
        outcome.forwards[rows] += 1
        broken = self._settle(points, rows, evaluation) & legal
        if iterations >= 0:
            outcome.false_claims[rows] += (~broken & legal).long()
            outcome.iterations[rows[broken]] = iterations
        outcome.broken[rows] |= broken
        outcome.best_loss[rows] = torch.maximum(outcome.best_loss[rows], evaluation.value)
        return rows[broken]

    def _verify(self, points: Tensor, rows: Tensor) -> Evaluation:
        """Evaluate points at some rows in float32, tile by tile; results on the CPU."""
        parts = []
        with torch.no_grad(), self.objective.computing(torch.float32):
            for tile, count, _ in self._tiles(rows):
                evaluation = self.objective.take(tile).evaluate(points[tile].to(self._device))
                parts.append([None if t is None else t[:count].cpu() for t in vars(evaluation).values()])
        if not parts:
            empty = torch.empty(0)
            return Evaluation(empty, empty.bool(), empty, torch.empty(0, 0))
        value, broken, margin, logits = (None if p[0] is None else torch.cat(p) for p in zip(*parts, strict=True))  # type: ignore[arg-type]  # columns are all None or all tensors
        if value is None or broken is None:
            raise TypeError("an objective evaluates to a value and a verdict for each row")
        return Evaluation(value, broken, margin, logits)

    def _settle(self, points: Tensor, rows: Tensor, evaluation: Evaluation) -> Tensor:
        """Return the verdicts, those within the tie tolerance decided anew in float64 where the model can."""
        broken = evaluation.broken.clone()
        if evaluation.margin is None or torch.float64 not in self.objective.precisions:
            return broken
        close = torch.where(evaluation.margin.abs() < self.objective.tie_tolerance)[0]
        for position in close:
            tile = rows[position].repeat(self.settings.granule)
            with torch.no_grad(), self.objective.computing(torch.float64):
                exact = self.objective.take(tile).evaluate(points[tile].to(self._device, torch.float64))
            broken[position] = exact.broken[0].cpu()
            self.outcome.near_tie[rows[position]] = True
        return broken

    def _tiled(self, rows: Tensor, advance: Callable[[Tensor, Tensor], State]) -> tuple[State, Tensor]:
        """Advance the state of `rows` tile by tile in the search precision; also the seconds of each row."""
        parts, seconds = [], torch.zeros(len(rows), dtype=torch.float64)
        with self.objective.computing(self.settings.search_dtype):
            for tile, count, own in self._tiles(rows):
                began = time.perf_counter()
                state = advance(tile, own.to(self._device))
                parts.append(state.take(torch.arange(count, device=state.origin.device)))
                seconds[own[:count]] = (time.perf_counter() - began) / count
        return type(parts[0]).cat(parts), seconds

    def _tiles(self, rows: Tensor) -> Iterator[tuple[Tensor, int, Tensor]]:
        """Cut rows into tiles, the last padded with copies of its first row: (rows, how many count, positions)."""
        positions = torch.arange(len(rows))
        for own in positions.split(self.settings.tile):
            count = len(own)
            missing = -count % self.settings.granule
            padded = torch.cat([own, own[:1].repeat(missing)])
            yield rows[padded], count, padded

    @property
    def _device(self) -> torch.device:
        for module in self.objective.modules:
            for tensor in module.parameters():
                return tensor.device
        return self.pixels.device


def row_invariance(objective: Objective, pixels: Tensor, settings: DriverSettings) -> float:
    """Measure how much a row's value and input gradient depend on where it stands and who stands beside it.

    The same rows are placed first, last and among strangers in tiles of 16, 32 and the run's own size; the result is
    the largest absolute difference. At 0 every tile gives the same bits, so tiles and compaction cannot matter.

    Args:
        objective: The objective of at least `GRANULE` rows.
        pixels: `[N, 3, H, W]`, N >= 16.
        settings: Tile and search precision.
    """
    count = len(pixels)
    if count < GRANULE:
        raise ShapeError(f"{count} images to probe with.", f"Give at least {GRANULE}.")
    probe = torch.tensor([0, 1, GRANULE // 2, GRANULE - 1])
    reference: list[Tensor] | None = None
    worst = 0.0
    strangers = torch.arange(max(settings.tile, 2 * GRANULE)) % count
    layouts = []
    for size in sorted({GRANULE, 2 * GRANULE, settings.tile}):
        front = torch.cat([probe, strangers[: size - len(probe)]])
        back = torch.cat([strangers.flip(0)[: size - len(probe)], probe])
        layouts += [(front, torch.arange(len(probe))), (back, torch.arange(size - len(probe), size))]
    with frozen(objective.modules), objective.computing(settings.search_dtype):
        for rows, places in layouts:
            gradient, evaluation = input_gradient(objective.take(rows), pixels[rows])
            found = [gradient[places], evaluation.value[places]]
            if evaluation.logits is not None:
                found.append(evaluation.logits[places])
            if reference is None:
                reference = found
            worst = max(worst, *(float((a - b).abs().max()) for a, b in zip(found, reference, strict=True)))
    return worst
