"""Signs that only the model itself can show, on a few samples: repeated forwards, gradients, neighbours in a tile.

Source: evaluation plan 3.1, thresholds version 2. Deviations: finite differences are taken between points cut to the
box and compared with the gradient along what is left of the way; the error along the gradient is a check of its own,
`fd_relative_error`, beside the correlation, `fd_cosine`; differences are those of the margin against the class that
comes second on the image, which has no kink where rivals change places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import pyarrow as pa
import torch
from torch import Tensor

from ironclip.attacks.base import Attack
from ironclip.attacks.driver import (
    GRANULE,
    DriverSettings,
    Outcome,
    exact_float32,
    run_attack,
    untouched_random_state,
)
from ironclip.attacks.objectives import Evaluation, Misclassify, frozen, input_gradient, predict
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError
from ironclip.evaluation.diagnostics import Check, not_run
from ironclip.models.zero_shot import Classifier
from ironclip.randomness import SampleRandom

REPEATS = 5
"""Forwards of the same images by which a randomised model shows."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Some samples, the model, and the game: on what the checks are made.

    Attributes:
        classifier: The model.
        pixels: Float32 `[N, 3, H, W]`, as the adversary finds them; N at least 1.
        labels: `[N]` int64.
        keys: One a sample.
        threat: The game.
        groups: As `Misclassify.groups`.
        seed: Of random starts and directions.
        settings: Tile of forwards.
    """

    classifier: Classifier
    pixels: Tensor
    labels: Tensor
    keys: tuple[str, ...]
    threat: ThreatModel
    groups: Tensor | None = None
    seed: int = 0
    settings: DriverSettings = field(default_factory=DriverSettings)

    def objective(self, loss: str) -> Misclassify:
        """Return what an adversary maximises on all samples."""
        labels = self.labels.to(self.classifier.device)
        return Misclassify(self.classifier, labels, loss=loss, groups=self.groups)

    def attacked(self, attack: Attack, threat: ThreatModel | None = None) -> Outcome:
        """Let an attack, under this or another game, do what it can."""
        return run_attack(
            attack,
            self.objective(attack.loss),
            self.pixels,
            self.keys,
            threat or self.threat,
            seed=self.seed,
            settings=self.settings,
        )

    def rows(self, outcome: Outcome) -> pa.Table:
        """Return an outcome with the columns that checks of rows read."""
        clean, final = outcome.clean.logits, outcome.final.logits
        if clean is None or final is None:
            raise TypeError("a classification objective gives logits")
        columns = {
            "y": self.labels,
            "pred_clean": predict(clean, self.labels, outcome.clean.broken),
            "broken": outcome.broken,
            "norm": outcome.norm,
            "restart": outcome.restart,
            "false_claims": outcome.false_claims,
            "invalid": outcome.invalid,
            "logits_clean": clean,
            "logits_adv": final,
        }
        plain = {name: column.tolist() for name, column in columns.items()}
        return pa.table({"sample_id": list(self.keys), **plain})

    def take(self, count: int) -> Probe:
        """Return the first samples."""
        return replace(self, pixels=self.pixels[:count], labels=self.labels[:count], keys=self.keys[:count])

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Compute in exact float32 with the model frozen; leave it and global random states as found."""
        with ExitStack() as stack:
            stack.enter_context(untouched_random_state())
            stack.enter_context(exact_float32(self.classifier.device))
            stack.enter_context(frozen(self.objective("margin").modules))
            yield

    def tiles(self) -> Iterator[tuple[Tensor, int]]:
        """Cut the samples into full tiles of a granule's multiple: (rows, how many of them count)."""
        for own in torch.arange(len(self.keys)).split(self.settings.tile):
            padded = torch.cat([own, own[:1].repeat(-len(own) % GRANULE)])
            yield padded, len(own)


def randomised(probe: Probe) -> Check:
    """Find a model that answers differently when asked again: the largest relative difference of logits in l2.

    It fails above 1e-4 and, with the value 1 at least, where an answer changes.
    """
    worst, changed = 0.0, False
    rows, count = next(probe.tiles())
    pixels = probe.pixels[rows].to(probe.classifier.device)
    with torch.no_grad(), probe.undisturbed():
        first, *others = (probe.classifier.logits(pixels)[:count].double() for _ in range(REPEATS))
    for other in others:
        distance = torch.linalg.vector_norm(other - first, dim=1)
        size = torch.linalg.vector_norm(first, dim=1).clamp(min=1e-12)
        worst = max(worst, (distance / size).max().item())
        changed |= bool((other.argmax(dim=1) != first.argmax(dim=1)).any())
    return _above("randomised", max(worst, 1.0) if changed else worst, 1e-4)


def computes_at_test_time(probe: Probe) -> Check:
    """Find a model that learns while it answers: 1 if it needs gradients in its forward, or its weights move."""
    rows, _ = next(probe.tiles())
    pixels = probe.pixels[rows].to(probe.classifier.device)
    tensors = [*probe.classifier.parameters(), *probe.classifier.buffers()]
    before = [tensor.detach().clone() for tensor in tensors]
    with probe.undisturbed():
        try:
            # Where gradients cannot be had, a model that takes some within its forward stops.
            with torch.inference_mode():
                probe.classifier.logits(pixels)
            learns = False
        except RuntimeError:
            learns = True
    learns |= any(not torch.equal(old, new) for old, new in zip(before, tensors, strict=True))
    return _above("test_time_compute", float(learns), 0)


def no_gradient_path(probe: Probe) -> Check:
    """Find a model through which no gradient comes: 1 if autograd gives none."""
    rows, _ = next(probe.tiles())
    with probe.undisturbed():
        try:
            input_gradient(probe.objective("margin").take(_on(rows, probe)), _pixels(probe, rows))
        except (ConfigError, RuntimeError):
            return _above("no_gradient_path", 1.0, 0)
    return _above("no_gradient_path", 0.0, 0)


def zero_gradient_fraction(probe: Probe, loss: str, *, is_info: bool = False) -> Check:
    """Measure the share of samples whose gradient is 0 in every pixel, at the image or at a random start.

    Args:
        probe: The samples.
        loss: "margin", or "ce", which is the check `zero_gradient_fraction_ce`.
        is_info: The result does not rest on this loss.
    """
    random = SampleRandom(probe.seed, probe.keys, "diagnostics")
    starts = probe.threat.random_start(probe.pixels, random)
    flat = torch.zeros(2, dtype=torch.int64)
    with probe.undisturbed():
        for place, points in enumerate((probe.pixels, starts)):
            for rows, count in probe.tiles():
                objective = probe.objective(loss).take(_on(rows, probe))
                gradient, _ = input_gradient(objective, points[rows].to(probe.classifier.device))
                flat[place] += int((gradient.flatten(1).abs().sum(dim=1) == 0)[:count].sum())
    name, limit = ("zero_gradient_fraction", 0.01) if loss == "margin" else ("zero_gradient_fraction_ce", 0.05)
    return replace(_above(name, flat.max().item() / len(probe.keys), limit), is_info=is_info)


def finite_differences(probe: Probe) -> tuple[Check, Check]:
    """Compare the gradient with differences of the model: `fd_cosine` and `fd_relative_error`, medians over samples.

    Differences are taken along the gradient and four random directions, over three step sizes, of which the middle
    result counts. A gradient of 0 counts as a cosine of 0.
    """
    cosines, errors = [], []
    random = SampleRandom(probe.seed, probe.keys, "diagnostics")
    shape = probe.pixels.shape[1:]
    noise = torch.stack([random.normal(shape, f"direction {number}") for number in range(4)])
    size = 1e-3 * probe.pixels[0].numel() ** 0.5
    with probe.undisturbed():
        for rows, count in probe.tiles():
            pixels, objective = _pixels(probe, rows), probe.objective("margin").take(_on(rows, probe))
            with torch.no_grad():
                target = objective.rivals(objective.evaluate(pixels), 1)[:, 0]

            def lead(evaluation: Evaluation, objective: Misclassify = objective, target: Tensor = target) -> Tensor:
                return objective.aim(evaluation, target, "margin_t")

            def height(points: Tensor, objective: Misclassify = objective, lead: _Lead = lead) -> Tensor:
                return lead(objective.evaluate(points)).double()

            slopes, _ = input_gradient(objective, pixels, lead)
            directions = [_unit(slopes), *(_unit(one) for one in noise[:, rows].to(pixels))]

            by_size = [_compared(height, pixels, slopes, directions, step * size) for step in (1, 2, 4)]
            cosines.append(torch.stack([cosine for cosine, _ in by_size]).median(dim=0).values[:count])
            errors.append(torch.stack([error for _, error in by_size]).median(dim=0).values[:count])
    cosine, error = (torch.cat(parts).median().item() for parts in (cosines, errors))
    alike = Check(name="fd_cosine", value=cosine, threshold=0.9, state="failed" if cosine < 0.9 else "passed")
    return alike, _above("fd_relative_error", error, 0.25)


def batch_invariance(probe: Probe) -> Check:
    """Count verdicts of 16 samples that change with their neighbours: alone, in a full tile, in another order."""
    few = probe.take(GRANULE)
    count = len(few.keys)
    rows, _ = next(few.tiles())
    order = torch.flip(rows, dims=[0])
    with torch.no_grad(), few.undisturbed():

        def answers(chosen: Tensor) -> Tensor:
            return few.classifier.logits(_pixels(few, chosen)).argmax(dim=1).cpu()

        together, reversed_ = answers(rows)[:count], answers(order).flip(dims=[0])[:count]
        alone = torch.stack([answers(row.repeat(GRANULE))[0] for row in torch.arange(count)])
    return _above("batch_invariance", float(((together != reversed_) | (together != alone)).sum()), 0)


def ce_direction(probe: Probe, samples: int = 64) -> Check:
    """Compare the cross-entropy's gradient in float32 and float64: the median cosine; fails below 0.99."""
    few = probe.take(samples)
    if torch.float64 not in few.classifier.precisions:
        return not_run("ce_direction")
    found = []
    with few.undisturbed():
        for rows, count in few.tiles():
            objective, pixels = few.objective("ce").take(_on(rows, few)), _pixels(few, rows)
            single, _ = input_gradient(objective, pixels)
            with objective.computing(torch.float64):
                double, _ = input_gradient(objective, pixels.double())
            found.append((_unit(single.double()) * _unit(double)).flatten(1).sum(dim=1)[:count])
    cosine = torch.cat(found).median().item()
    return Check(name="ce_direction", value=cosine, threshold=0.99, state="failed" if cosine < 0.99 else "passed")


def loss_increases(probe: Probe, attack: Attack, early: int = 10) -> Check:
    """Measure the share of samples on which a search gains nothing, neither at first nor later; fails above 5 %.

    Args:
        probe: The samples.
        attack: A search of more steps than `early`; it does not stop at a break.
        early: Points after which the first gain is taken.
    """
    stuck = 0
    with probe.undisturbed():
        for rows, count in probe.tiles():
            objective, keys = probe.objective(attack.loss).take(_on(rows, probe)), [probe.keys[row] for row in rows]
            random = SampleRandom(probe.seed, keys, "diagnostics")
            state = attack.start(objective, _pixels(probe, rows), probe.threat, random)
            values = []
            while not state.done:
                state = attack.step(objective, state)
                values.append(state.best_value)
            first, middle, last = values[0], values[min(early, len(values) - 1)], values[-1]
            stuck += int((~(middle > first) & ~(last > middle))[:count].sum())
    return _above("loss_increases", stuck / len(probe.keys), 0.05)


_Lead = Callable[[Evaluation], Tensor]


def _compared(
    height: Callable[[Tensor], Tensor], pixels: Tensor, slopes: Tensor, directions: list[Tensor], size: float
) -> tuple[Tensor, Tensor]:
    """Return the cosine of differences and predictions over directions, and the error along the first, `[B]` each."""
    found, expected = [], []
    with torch.no_grad():
        for direction in directions:
            ahead, behind = ((pixels + sign * size * direction).clamp(0, 1) for sign in (1, -1))
            found.append(height(ahead) - height(behind))
            expected.append((slopes.double() * (ahead - behind).double()).flatten(1).sum(dim=1))
    found_all, expected_all = torch.stack(found), torch.stack(expected)
    lengths = torch.linalg.vector_norm(found_all, dim=0) * torch.linalg.vector_norm(expected_all, dim=0)
    cosine = torch.where(lengths > 0, (found_all * expected_all).sum(dim=0) / lengths.clamp(min=1e-300), 0.0)
    error = torch.where(
        expected_all[0].abs() > 0,
        (found_all[0] - expected_all[0]).abs() / expected_all[0].abs().clamp(min=1e-300),
        1.0,
    )
    return cosine, error


def _unit(images: Tensor) -> Tensor:
    largest = images.abs().amax(dim=(1, 2, 3), keepdim=True)
    scaled = images / torch.where(largest > 0, largest, 1)
    length = torch.linalg.vector_norm(scaled.flatten(1), dim=1).view(-1, 1, 1, 1)
    return scaled / torch.where(length > 0, length, 1)


def _pixels(probe: Probe, rows: Tensor) -> Tensor:
    return probe.pixels[rows].to(probe.classifier.device)


def _on(rows: Tensor, probe: Probe) -> Tensor:
    return rows.to(probe.classifier.device)


def _above(name: str, value: float, threshold: float) -> Check:
    return Check(name=name, value=value, threshold=threshold, state="failed" if value > threshold else "passed")
