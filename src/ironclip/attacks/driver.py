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

from ironclip.attacks.base import Attack, State, improves
from ironclip.attacks.grid import OnGrid, check_levels, snap
from ironclip.attacks.objectives import Evaluation, Objective, frozen, input_gradient
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError, ShapeError, ValueRangeError
from ironclip.randomness import SampleRandom

GRANULE = 16
"""Full tiles are multiples of this."""

FINER = (4, 8)
"""Rows to which the last tile may be padded where no bit hangs on it; rows of 1 and 2 run on other kernels."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class DriverSettings:
    """How the driver runs; none of it may change a result where rows are independent.

    Attributes:
        tile: Rows a forward; rounded up to a multiple of 16.
        compact: Drop broken rows and merge survivors that stand at the same step.
        search_dtype: Precision of the search; verdicts are always float32.
        granule: The last tile is padded to a multiple of this; `fitted` finds the smallest that changes no bit.
    """

    tile: int = 64
    compact: bool = True
    search_dtype: torch.dtype = torch.float32
    granule: int = GRANULE

    def __post_init__(self) -> None:
        if self.tile < 1:
            raise ConfigError(
                f"a batch size of {self.tile}.", "Give a positive number; it is rounded up to a multiple of 16."
            )
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
        best_loss: `[N]`, largest value of the objective seen on the clean image and during the search up to the break.
        norm: `[N]` float64, length of the perturbation.
        iterations: `[N]` points that the restart had examined at the first verified break (1 is its start), -1 where
            the search claimed none.
        restart: `[N]`, in which restart the adversarial was found, -1 where it is the clean image.
        forwards: `[N]`, backwards: `[N]`: passes spent up to the break, clean image and verification included.
        seconds: `[N]`, wall time, each tile's shared by its rows.
        near_tie: `[N]` bool, a verdict within the tie tolerance was settled in float64.
        false_claims: `[N]`, claims of the search that float32 did not confirm.
        invalid: `[N]` bool, a claim or the best point lay outside ball or box; it is no success, and is not returned.
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
        ValueRangeError: Pixels are not float32 in [0, 1]; or not 8-bit in the game of an 8-bit adversary.
    """
    settings = settings or DriverSettings()
    if len(keys) != len(pixels):
        raise ShapeError(f"{len(keys)} sample keys for {len(pixels)} images.", "Give one key an image.")
    if pixels.dtype != torch.float32:
        raise ValueRangeError(
            f"pixels are {pixels.dtype}, expected float32 in [0, 1].", "For 8-bit images use pixels / 255."
        )
    low, high = (float(bound) for bound in torch.aminmax(pixels.detach())) if pixels.numel() else (0.0, 0.0)
    if not (low >= 0 and high <= 1):
        raise ValueRangeError(
            f"pixels range from {low:.4g} to {high:.4g}, expected numbers in [0, 1].",
            "Give images before mean and std are applied (the model normalises inside); divide 0..255 by 255.",
        )
    pixels = pixels.detach().cpu()
    if threat.integer:
        check_levels(pixels)
    with untouched_random_state(), exact_float32(objective.device), frozen(objective.modules):
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


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Let float32 be float32, whatever the caller has switched on: no autocast, no TF32, no kernels chosen by timing.

    Verdicts need it; convolutions on CUDA use TF32 unless told otherwise.
    """
    products, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn
    with (
        torch.autocast(device.type, enabled=False),
        cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False),
    ):
        try:
            if products != "highest":
                torch.set_float32_matmul_precision("highest")
            yield
        finally:
            if products != "highest":
                torch.set_float32_matmul_precision(products)


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
    searched: Objective = field(init=False)

    def __post_init__(self) -> None:
        integer = self.threat.integer
        self.searched = OnGrid(self.objective, self.pixels, self.threat) if integer else self.objective

    def to_the_end(self, progress: Progress | None) -> Outcome:
        count = len(self.pixels)
        every = torch.arange(count)
        clean = self._verify(self.pixels, every)
        self.outcome = outcome = Outcome(
            adversarial=self.pixels.clone(),
            broken=clean.broken,
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
        outcome.clean = replace(clean, broken=self._settle(self.pixels, every, clean))
        outcome.final = outcome.clean.each(torch.clone)
        outcome.broken = outcome.final.broken  # one tensor: `_write` marks both
        attacked = torch.where(~outcome.broken)[0]
        best = torch.full((count,), -torch.inf)
        for restart in range(self.attack.restarts):
            rows = attacked[~outcome.broken[attacked]] if self.settings.compact else attacked
            if len(rows):
                self._restart(restart, rows, best, progress)
        self._conclude(torch.where(~outcome.broken)[0])
        outcome.norm = self.threat.distance(outcome.adversarial, self.pixels)
        return outcome

    def _restart(self, restart: int, rows: Tensor, best: Tensor, progress: Progress | None) -> None:
        """Run the attack once over the given rows, all of them step by step together."""
        outcome, attack = self.outcome, self.attack.for_restart(restart)
        streams = SampleRandom(self.seed, self.keys, f"{attack.name}|{restart}")
        state, seconds = self._tiled(
            rows,
            lambda tile, own: attack.start(
                self.searched.take(tile), self.pixels[tile].to(self.objective.device), self.threat, streams.take(tile)
            ),
        )
        outcome.seconds[rows] += seconds
        examined = 0
        booked = outcome.broken[rows]  # none, unless broken rows stay
        while not state.done:
            before = state

            def advance(tile: Tensor, own: Tensor, before: State = before) -> State:
                return attack.step(self.searched.take(tile), before.take(own))

            state, seconds = self._tiled(rows, advance)
            outcome.seconds[rows] += seconds
            examined += 1
            claims = state.claimed.cpu() & ~booked
            if claims.any():
                points = state.candidate[claims.to(state.candidate.device)].cpu()
                self._check_claims(points, rows[claims], restart, examined)
            standing = ~outcome.broken[rows]
            self._book(rows, state, ~standing & ~booked, best, restart)
            if progress:
                progress(int(outcome.broken.sum()), int(standing.sum()))
            booked = ~standing
            if self.settings.compact and booked.any():
                state = state.take(torch.where(standing)[0].to(state.origin.device))
                rows, booked = rows[standing], booked[standing]
                if not len(rows):
                    return
        self._book(rows, state, ~booked, best, restart)

    def _book(self, rows: Tensor, state: State, leaving: Tensor, best: Tensor, restart: int) -> None:
        """Book what rows have spent when they break or the search ends; keep the best point of those that survive."""
        if not leaving.any():
            return
        outcome, index, gone = self.outcome, leaving.to(state.origin.device), rows[leaving]
        outcome.forwards[gone] += state.forwards[index].cpu()
        outcome.backwards[gone] += state.backwards[index].cpu()
        outcome.best_loss[gone] = torch.fmax(outcome.best_loss[gone], state.best_value[index].cpu().float())
        value = self.attack.result_value(state)[index].cpu().float()
        kept = improves(value, best[gone]) & ~outcome.broken[gone]
        best[gone[kept]] = value[kept]
        outcome.adversarial[gone[kept]] = self._played(self.attack.result(state)[index].cpu()[kept], gone[kept])
        outcome.restart[gone[kept]] = restart

    def _check_claims(self, points: Tensor, rows: Tensor, restart: int, examined: int) -> None:
        """Let float32 judge the points that the attack holds for successes, one for each of some rows."""
        outcome, points = self.outcome, self._played(points, rows)
        legal = self.threat.contains(points, self.pixels[rows])
        outcome.invalid[rows] |= ~legal
        points, rows = points[legal], rows[legal]
        if not len(rows):
            return
        verdict = self._judge(points, rows)
        won = verdict.broken
        outcome.false_claims[rows] += (~won).long()
        self._write(points[won], rows[won], verdict, won)
        outcome.iterations[rows[won]] = examined
        outcome.restart[rows[won]] = restart

    def _played(self, points: Tensor, rows: Tensor) -> Tensor:
        """Return what the search looked at where it stood at these points: 8-bit images in an 8-bit game."""
        return snap(points, self.pixels[rows], self.threat) if self.threat.integer else points

    def _conclude(self, rows: Tensor) -> None:
        """Let float32 judge the best point of each survivor; one outside ball or box gives way to the clean image."""
        outcome = self.outcome
        legal = self.threat.contains(outcome.adversarial[rows], self.pixels[rows])
        outcome.invalid[rows] |= ~legal
        outcome.adversarial[rows[~legal]] = self.pixels[rows[~legal]]
        outcome.restart[rows[~legal]] = -1
        rows = rows[legal]
        if len(rows):
            points = outcome.adversarial[rows]
            self._write(points, rows, self._judge(points, rows), torch.ones(len(rows), dtype=torch.bool))

    def _judge(self, points: Tensor, rows: Tensor) -> Evaluation:
        """Evaluate legal points in float32, ties settled, and book it."""
        evaluation = self._verify(points, rows)
        self.outcome.forwards[rows] += 1
        self.outcome.best_loss[rows] = torch.fmax(self.outcome.best_loss[rows], evaluation.value)
        return replace(evaluation, broken=self._settle(points, rows, evaluation))

    def _write(self, points: Tensor, rows: Tensor, evaluation: Evaluation, which: Tensor) -> None:
        """Make points, one for each of some rows, the result; of the evaluation those entries that `which` marks."""
        self.outcome.adversarial[rows] = points
        for name, column in vars(self.outcome.final).items():
            if column is not None:
                column[rows] = getattr(evaluation, name)[which]

    def _verify(self, points: Tensor, rows: Tensor) -> Evaluation:
        """Evaluate a point for each of some rows in float32, tile by tile; results on the CPU."""
        parts: list[Evaluation] = []
        with torch.no_grad(), self.objective.computing(torch.float32):
            for tile, count, own in self._tiles(rows):

                def counted(column: Tensor, count: int = count) -> Tensor:
                    return column[:count].cpu()

                evaluation = self.objective.take(tile).evaluate(points[own].to(self.objective.device))
                parts.append(evaluation.each(counted))
        if not parts:
            empty = torch.empty(0)
            return Evaluation(empty, empty.bool(), empty, torch.empty(0, 0))
        margins = [part.margin for part in parts if part.margin is not None]
        logits = [part.logits for part in parts if part.logits is not None]
        return Evaluation(
            torch.cat([part.value for part in parts]),
            torch.cat([part.broken for part in parts]),
            torch.cat(margins) if margins else None,
            torch.cat(logits) if logits else None,
        )

    def _settle(self, points: Tensor, rows: Tensor, evaluation: Evaluation) -> Tensor:
        """Return the verdicts, those within the tie tolerance decided anew in float64 where the model can."""
        broken = evaluation.broken.clone()
        if evaluation.margin is None or torch.float64 not in self.objective.precisions:
            return broken
        close = torch.where(evaluation.margin.abs() < self.objective.tie_tolerance)[0]
        for position in close:
            tile = rows[position].repeat(self.settings.granule)
            copies = points[position].to(self.objective.device, torch.float64).expand(len(tile), -1, -1, -1)
            with torch.no_grad(), self.objective.computing(torch.float64):
                exact = self.objective.take(tile).evaluate(copies)
            broken[position] = exact.broken[0].cpu()
            self.outcome.near_tie[rows[position]] = True
        return broken

    def _tiled(self, rows: Tensor, advance: Callable[[Tensor, Tensor], State]) -> tuple[State, Tensor]:
        """Advance the state of `rows` tile by tile in the search precision; also the seconds of each row."""
        parts, seconds = [], torch.zeros(len(rows), dtype=torch.float64)
        with self.objective.computing(self.settings.search_dtype):
            for tile, count, own in self._tiles(rows):
                began = time.perf_counter()
                state = advance(tile, own.to(self.objective.device))
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


def row_invariance(objective: Objective, pixels: Tensor, settings: DriverSettings) -> float:
    """Measure how much a row's value and input gradient depend on where it stands and who stands beside it.

    The same 16 samples stand in tiles of 16, 32, 48, the run's own size and one granule less; where the granule is
    finer also in one and three granules and one more than 16. They stand there all together and each half by itself,
    in float32 and in the precision of the search, and every row is compared; the result is the largest absolute
    difference, infinite where a number stands against a NaN. At 0 every tile gives the same bits, so tiles and
    compaction cannot matter.

    Args:
        objective: The objective of at least `GRANULE` rows.
        pixels: `[N, 3, H, W]`, N >= 16.
        settings: Tile, granule and search precision.

    Raises:
        ShapeError: Fewer than 16 images.
    """
    if len(pixels) < GRANULE:
        raise ShapeError(f"{len(pixels)} images to probe with.", f"Give at least {GRANULE}.")
    pixels = pixels.detach()[:GRANULE].to(objective.device)
    granule = settings.granule
    sizes = {2 * GRANULE, 3 * GRANULE, max(settings.tile - min(granule, GRANULE), GRANULE), settings.tile}
    if granule < GRANULE:
        sizes |= {granule, 3 * granule, GRANULE + granule}
    half = GRANULE // 2
    layouts = [torch.arange(GRANULE)]
    for size in sorted(sizes | {GRANULE}):
        places = torch.arange(size)
        layouts += [places % GRANULE, places * 3 % half, half + places * 5 % half]
    worst = 0.0
    with untouched_random_state(), exact_float32(objective.device), frozen(objective.modules):
        for dtype in {settings.search_dtype, torch.float32}:
            with objective.computing(dtype):
                reference, *others = (_probed(objective.take(rows), pixels[rows]) for rows in layouts)
            for rows, found in zip(layouts[1:], others, strict=True):
                pairs = zip(found, reference, strict=True)
                worst = max(worst, *(_difference(part, expected[rows]) for part, expected in pairs))
    return worst


def fitted(objective: Objective, pixels: Tensor, settings: DriverSettings) -> tuple[DriverSettings, float]:
    """Let the last tile be as small as the machine's kernels allow; arguments as of `row_invariance`.

    Where few rows stand most of a tile is padding: of 16 rows for one survivor 15, of 4 rows 3.

    Returns:
        Settings whose granule is the smallest at which rows are bit-identical, and 0; or, where rows hang on their tile
        whatever its size, settings under which all tiles have one shape, and what `row_invariance` measured.
    """
    invariance = 0.0
    for granule in (*FINER, GRANULE):
        found = replace(settings, granule=granule)
        invariance = row_invariance(objective, pixels, found)
        if invariance == 0:
            return found, 0.0
    return replace(settings, granule=settings.tile), invariance


def _probed(objective: Objective, pixels: Tensor) -> list[Tensor]:
    gradient, evaluation = input_gradient(objective, pixels)
    parts = [gradient, evaluation.value, evaluation.logits]
    return [part for part in parts if part is not None]


def _difference(a: Tensor, b: Tensor) -> float:
    same = (a == b) | (a.isnan() & b.isnan())
    return float(torch.where(same, 0, (a - b).abs()).nan_to_num(nan=torch.inf, posinf=torch.inf).max())
