"""Two sides that attack one classifier in turns: seconds, passes, and what stands in the end.

Passes are counted where they happen: rows that enter the model, and rows whose gradient comes back, so padding, copies
and verification are among them.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from acceptance.peers import still_right
from torch import Tensor

from ironclip.attacks.threat_model import ThreatModel
from ironclip.benchmarking.measuring import best_product, counted, in_turns, product_runs
from ironclip.benchmarking.towers import product_shapes
from ironclip.files import write_atomically
from ironclip.models.zero_shot import Classifier, FixedClasses

PROBED = 16
"""Rows by which operations are counted."""


class Counted(Classifier):
    """A classifier that counts the rows that pass through it, padding and copies included.

    Attributes:
        forwards: Rows by the precision they were computed in ("float32", "bfloat16").
        backwards: Likewise, of gradients.
    """

    def __init__(self, inner: Classifier) -> None:
        super().__init__()
        self.inner = inner
        self.forwards: dict[str, int] = {}
        self.backwards: dict[str, int] = {}
        self._precision = precision_name(torch.float32)

    @property
    def device(self) -> torch.device:
        """Where pixels have to lie."""
        return self.inner.device

    @property
    def precisions(self) -> frozenset[torch.dtype]:
        """Those of the classifier."""
        return self.inner.precisions

    @property
    def tie_tolerance(self) -> float:
        """That of the classifier."""
        return self.inner.tie_tolerance

    @contextmanager
    def computing(self, dtype: torch.dtype) -> Iterator[None]:
        """Run forwards inside the block in another precision, and count them under its name."""
        before, self._precision = self._precision, precision_name(dtype)
        try:
            with self.inner.computing(dtype):
                yield
        finally:
            self._precision = before

    def logits(self, pixels: Tensor) -> Tensor:
        """Score pixels."""
        rows, precision = len(pixels), self._precision
        self.forwards[precision] = self.forwards.get(precision, 0) + rows
        scores = self.inner.logits(pixels)

        def passed(gradient: Tensor) -> None:
            self.backwards[precision] = self.backwards.get(precision, 0) + rows

        if scores.requires_grad:
            scores.register_hook(passed)
        return scores


@dataclass(frozen=True)
class Game:
    """What both sides attack: images `[N, 3, H, W]` with labels and keys, and the radius of the linf ball."""

    pixels: Tensor
    labels: Tensor
    keys: tuple[str, ...]
    threat: ThreatModel

    def laps(self, size: int) -> list[Game]:
        """Cut the images into games of so many."""
        starts = range(0, len(self.labels), size)
        return [self.take(slice(start, start + size)) for start in starts]

    def take(self, rows: slice) -> Game:
        """Return the game of some of the images."""
        return Game(self.pixels[rows], self.labels[rows], self.keys[rows], self.threat)


Runner = Callable[[Classifier, Game, int], Tensor]
"""From classifier, game and batch size to the images that the attack ends with."""


@dataclass(frozen=True)
class Side:
    """One of the two: what it runs, what it runs in short to find its batch size, and on which model."""

    run: Runner
    short: Runner
    classifier: Classifier


@dataclass(frozen=True)
class Lap:
    """What one side did in a lap: its seconds, its passes by precision, and how many images stand."""

    seconds: float
    forwards: dict[str, int]
    backwards: dict[str, int]
    standing: int


@dataclass(frozen=True, kw_only=True)
class Race:
    """What was measured.

    Attributes:
        attack: Ours.
        peer: The other library, and its model where that is not ours.
        eps: Radius of the linf ball.
        images: Images a lap, one number a lap.
        batches: Rows a forward, of ours and of the other: each the best of `tried`.
        tried: Batch sizes.
        laps: Ours and the other's, in turns.
        operations: Of a row, ours and the other's: of a forward, and of a gradient of the pixels.
        rates: Operations a second of the machine's matrix products, by precision, from the same run.
        load: Of the machine when it began (processes that wanted to run).
    """

    attack: str
    peer: str
    eps: str
    images: tuple[int, ...]
    batches: tuple[int, int]
    tried: tuple[int, ...]
    laps: tuple[tuple[Lap, Lap], ...]
    operations: tuple[tuple[float, float], ...]
    rates: dict[str, float]
    load: float

    @property
    def ratios(self) -> list[float]:
        """How many times as fast ours is, lap by lap."""
        return [theirs.seconds / ours.seconds for ours, theirs in self.laps]

    @property
    def ratio(self) -> float:
        """The median of them."""
        return statistics.median(self.ratios)

    @property
    def ideal(self) -> float:
        """The ratio if both sides' counted operations ran at the machine's rates."""
        ours, theirs = (self._ideal_seconds(side) for side in (0, 1))
        return theirs / ours

    def _ideal_seconds(self, side: int) -> float:
        forward, backward = self.operations[side]
        laps = [pair[side] for pair in self.laps]
        passed = [(lap.forwards, forward) for lap in laps] + [(lap.backwards, backward) for lap in laps]
        return sum(rows * cost / self.rates[name] for part, cost in passed for name, rows in part.items())

    @property
    def standing(self) -> tuple[int, int]:
        """Images that stand after ours, and after the other's."""
        return sum(ours.standing for ours, _ in self.laps), sum(theirs.standing for _, theirs in self.laps)

    def passes(self, side: int) -> tuple[int, int]:
        """Return forwards and backwards of ours (0) or of the other (1)."""
        laps = [pair[side] for pair in self.laps]
        return sum(sum(lap.forwards.values()) for lap in laps), sum(sum(lap.backwards.values()) for lap in laps)

    def line(self) -> dict[str, Any]:
        """Return it with everything that follows from it, for JSON."""
        (ours_forwards, ours_backwards), (forwards, backwards) = self.passes(0), self.passes(1)
        seconds = [statistics.median(pair[side].seconds for pair in self.laps) for side in (0, 1)]
        return asdict(self) | {
            "seconds": seconds,
            "ratio": self.ratio,
            "slowest_ratio": min(self.ratios),
            "ideal": self.ideal,
            "forwards": [ours_forwards, forwards],
            "backwards": [ours_backwards, backwards],
            "standing": self.standing,
        }


def run_lap(side: Side, game: Game, batch: int) -> Lap:
    """Let one side attack; what stands is judged afterwards, in float32, and costs neither time nor passes."""
    counted = Counted(side.classifier)
    began = time.perf_counter()
    found = side.run(counted, game, batch)
    seconds = time.perf_counter() - began
    stand = still_right(side.classifier, found, game.labels) & still_right(side.classifier, game.pixels, game.labels)
    return Lap(seconds, counted.forwards, counted.backwards, int(stand.sum()))


def best_batches(sides: tuple[Side, Side], game: Game, sizes: Sequence[int], *, rounds: int = 2) -> tuple[int, int]:
    """Return the batch size at which each side's short form is fastest: medians, after a round that does not count."""
    times: dict[tuple[int, int], list[float]] = {(number, size): [] for number in (0, 1) for size in sizes}
    for turn in range(rounds + 1):
        for number, size in times:
            began = time.perf_counter()
            sides[number].short(sides[number].classifier, game, size)
            if turn:
                times[number, size].append(time.perf_counter() - began)
    ours, theirs = (min(sizes, key=lambda size: statistics.median(times[number, size])) for number in (0, 1))
    return ours, theirs


def race(
    attack: str,
    peer: str,
    sides: tuple[Side, Side],
    laps: Sequence[Game],
    *,
    sizes: Sequence[int],
    batches: tuple[int, int] | None = None,
    rates: dict[str, float],
    kept: Path | None = None,
) -> Race:
    """Let both sides run lap by lap, in turns.

    Args:
        attack: What ours is called.
        peer: What the other is called.
        sides: Ours and the other.
        laps: The same game again, or parts of a larger one.
        sizes: Batch sizes to choose from.
        batches: The best of them, where that is known.
        rates: See `measured_rates`.
        kept: A file that holds the laps which are done, so that a race that was stopped goes on.
    """
    load = os.getloadavg()[0]
    done: dict[str, Any] = json.loads(kept.read_text()) if kept is not None and kept.is_file() else {}
    batches = done.get("batches") or batches or best_batches(sides, laps[0], sizes)
    found = [(Lap(**ours), Lap(**theirs)) for ours, theirs in done.get("laps", ())]
    for game in laps[len(found) :]:
        found.append((run_lap(sides[0], game, batches[0]), run_lap(sides[1], game, batches[1])))
        if kept is not None:
            content = {"batches": batches, "laps": [[asdict(ours), asdict(theirs)] for ours, theirs in found]}
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(kept, json.dumps(content).encode())
    return Race(
        attack=attack,
        peer=peer,
        eps=str(laps[0].threat.eps),
        images=tuple(len(game.labels) for game in laps),
        batches=(batches[0], batches[1]),
        tried=tuple(sizes),
        laps=tuple(found),
        operations=tuple(row_operations(side.classifier, laps[0].pixels[:PROBED]) for side in sides),
        rates=rates,
        load=load,
    )


def measured_rates(classifier: FixedClasses, rows: int) -> dict[str, float]:
    """Measure the machine's rates in both precisions, operations a second, each the best of the tower's products."""
    precisions = (torch.float32, torch.bfloat16)
    grid = product_shapes(classifier.model.visual, rows)
    found = in_turns({name: run for dtype in precisions for name, run in product_runs(grid, dtype).items()}, 2)
    return {precision_name(dtype): best_product(found, dtype).rate for dtype in precisions}


def row_operations(classifier: Classifier, pixels: Tensor) -> tuple[float, float]:
    """Count the operations that a row costs: a forward, and a gradient of its pixels."""
    leaf = pixels.clone().requires_grad_(True)
    with torch.no_grad():
        forward = counted(lambda: classifier.logits(pixels))
    both = counted(lambda: torch.autograd.grad(classifier.logits(leaf).sum(), leaf))
    return forward / len(pixels), (both - forward) / len(pixels)


def precision_name(dtype: torch.dtype) -> str:
    """Return "float32" or "bfloat16"."""
    return str(dtype).removeprefix("torch.")
