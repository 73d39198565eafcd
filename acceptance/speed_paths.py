"""Tuned by the fast path and by the plain one: the same accuracies, over paired seeds and the same images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import t as student

from acceptance.claims import CannotRunError, Claim, Context, Figure, at_least, at_most, item
from acceptance.speed_tuned import CIFAR10, PAIRED, PATHS, SEEDS, Photographs, run_name, tuned, weights_of
from ironclip.attacks.threat_model import ThreatModel

SAMPLES = 4000
EPS = ThreatModel(eps="2/255")
FARTHEST = 1.5


@dataclass(frozen=True)
class Paired:
    """A mean difference of shares with its 95 % interval, and the standard errors that make it."""

    difference: float
    low: float
    high: float
    seed_error: float
    image_error: float

    @property
    def widest(self) -> float:
        """The end that is farther from 0, in points."""
        return 100 * max(abs(self.low), abs(self.high))

    def __str__(self) -> str:
        ends = f"{100 * self.difference:+.2f} [{100 * self.low:+.2f}, {100 * self.high:+.2f}] points"
        return f"{ends}; standard errors: seeds {100 * self.seed_error:.2f}, images {100 * self.image_error:.2f}"


def paired_by_seed(first: npt.ArrayLike, second: npt.ArrayLike) -> Paired:
    """Compare two ways of training whose runs are paired seed by seed: the same order, starts and recipe.

    As `evaluation.comparison.contest`, but the seeds' part is the variance of the paired differences over S, since what
    a seed does to both sides at once is no difference. The squared standard error is that, plus the variance over
    images of the mean difference over N, with half a pseudo-image a cell; Student's interval with Satterthwaite's
    degrees of freedom. What is neither seed nor image enters both parts, so the interval is too wide rather than too
    narrow.

    Args:
        first: Verdicts `[S, N]` bool: a row a seed, a column an image.
        second: The other's, of the same seeds and images in the same order.
    """
    gaps = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    seeds, images = gaps.shape
    by_image = gaps.mean(axis=0)
    padded = images + 2
    image_part = ((np.square(by_image).sum() + 1) / padded - (by_image.sum() / padded) ** 2) / padded
    seed_part = float(gaps.mean(axis=1).var(ddof=1)) / seeds
    variance = image_part + seed_part
    freedom = variance**2 / (image_part**2 / (images - 1) + seed_part**2 / (seeds - 1))
    reach = float(student.ppf(0.975, freedom)) * float(np.sqrt(variance))
    mean = float(gaps.mean())
    return Paired(mean, mean - reach, mean + reach, float(np.sqrt(seed_part)), float(np.sqrt(image_part)))


@item(
    "fast_and_plain",
    claims=[
        Claim("robust", "tecoa by the fast path, PGD-20 at 2/255: images that stand, of seed 0", at_least(200)),
        Claim(
            "clean_interval",
            "fast path (bfloat16) less plain path (float32), three paired seeds, clean accuracy: farthest end of the "
            "95 % interval of the mean",
            at_most(FARTHEST, "points"),
        ),
        Claim("robust_interval", "… robust accuracy", at_most(FARTHEST, "points")),
    ],
    modules=["acceptance.speed_tuned"],
    files=CIFAR10,
    state=lambda: weights_of(*PAIRED),
)
def fast_and_plain(context: Context) -> Iterator[Figure]:
    """Both sides are evaluated in one way, that of the fast path; each of the six runs is kept when it is done."""
    if context.short:
        raise CannotRunError("needs six trainings; the tests train in small")
    images = Photographs.open(SAMPLES)

    def verdicts(path: str) -> npt.NDArray[np.bool_]:
        """Return clean and robust verdicts of the seeds, `[2, S, N]`."""
        found = []
        for seed in SEEDS:
            name = run_name("tecoa", path, seed)
            kept = context.work / f"{name}.npy"
            found.append(images.verdicts(tuned(name), EPS, search=torch.bfloat16, kept=kept).numpy())
        return np.stack(found, axis=1)

    fast, plain = (verdicts(path) for path in PATHS)
    (clean, robust), (plain_clean, plain_robust) = fast, plain
    shares = [f"{100 * one.mean():.1f} %" for one in (clean, plain_clean, robust, plain_robust)]
    yield Figure("robust", int(robust[0].sum()), f"{int(robust[0].sum()):,} of {len(images.labels):,}")
    about = f"{len(SEEDS)} seeds, {len(images.labels):,} images"
    for claim, one, other, ours, theirs in (
        ("clean_interval", clean, plain_clean, *shares[:2]),
        ("robust_interval", robust, plain_robust, *shares[2:]),
    ):
        found = paired_by_seed(one, other)
        yield Figure(claim, found.widest, f"{found}; fast {ours}, plain {theirs}; {about}")
