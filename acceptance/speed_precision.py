"""Low precision does not flatter: the same search in bfloat16 and in float32, image by image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from acceptance.claims import CannotRunError, Claim, Context, Figure, at_least, at_most, item
from acceptance.speed_tuned import CIFAR10, FARE, TECOA, TINY, Photographs, tuned, weights_of
from ironclip.attacks.threat_model import ThreatModel
from ironclip.evaluation.intervals import PairedDifference, paired_difference

SAMPLES = 5000


@dataclass(frozen=True)
class Case:
    """A model, and a radius at which some of its images stand: where all fall, precision can move nothing."""

    title: str
    run: str | None
    eps: str

    def source(self) -> str:
        """Return where the model is."""
        return "tiny" if self.run is None else str(tuned(self.run))


CASES = {
    "original": Case("the original", None, "1/510"),
    "tecoa": Case("tecoa", TECOA, "2/255"),
    "fare": Case("fare", FARE, "2/255"),
}


def compared(low: Tensor, high: Tensor) -> PairedDifference:
    """Return what a bfloat16 search leaves standing, `[N]` bool, less what a float32 search leaves."""
    both, only_low, only_high = (int(part.sum()) for part in (low & high, low & ~high, high & ~low))
    return paired_difference(both, only_low, only_high, len(low) - both - only_low - only_high)


def widest(found: PairedDifference) -> float:
    """Return the end of the interval that is farther from 0, in points."""
    return 100 * max(abs(found.low), abs(found.high))


def _claims() -> list[Claim]:
    claims = []
    for name, case in CASES.items():
        line = f"{case.title}, {case.eps}, PGD-20: bfloat16 search with float32 verification less float32 search"
        claims += [
            Claim(f"{name}_standing", f"{line}: images that stand, else there is nothing to compare", at_least(200)),
            Claim(f"{name}_interval", "… farthest end of the paired 95 % interval", at_most(1, "points")),
            Claim(f"{name}_bias", "… lower end: above 0 it flatters", at_most(0, "points")),
        ]
    return claims


@item(
    "low_precision",
    claims=_claims(),
    modules=["acceptance.speed_tuned"],
    files=[*CIFAR10, TINY],
    state=lambda: weights_of(TECOA, FARE),
)
def low_precision(context: Context) -> Iterator[Figure]:
    """Each of the six searches is kept as soon as it is done."""
    if context.short:
        raise CannotRunError("needs tuned models and minutes of attack; tests compare the precisions in small")
    images = Photographs.open(SAMPLES)
    for name, case in CASES.items():
        threat = ThreatModel(eps=case.eps)
        low, high = (
            images.verdicts(case.source(), threat, search=search, kept=context.work / f"{name}-{bits}.npy")[1]
            for search, bits in ((torch.bfloat16, "bfloat16"), (torch.float32, "float32"))
        )
        found = compared(low, high)
        stand = f"{int(low.sum()):,} and {int(high.sum()):,} of {len(low):,} stand"
        yield Figure(f"{name}_standing", int(high.sum()), stand)
        interval = f"{100 * found.difference:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}] points"
        yield Figure(f"{name}_interval", widest(found), interval)
        moved = f"{int((low & ~high).sum())} stand in bfloat16 alone, {int((high & ~low).sum())} in float32 alone"
        yield Figure(
            f"{name}_bias", 100 * found.low, f"{100 * found.low:+.2f} points; {moved}, McNemar p {found.p_value:.2g}"
        )
