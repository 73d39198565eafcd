"""Attack success rates of generated text, each with what it is a share of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ironclip.errors import ShapeError, ValueRangeError
from ironclip.evaluation.intervals import Interval, wilson


@dataclass(frozen=True)
class SuccessRate:
    """How often an attack reached its goal, of the samples where that was left to reach.

    Attributes:
        successes: Samples at the goal under attack, and not before.
        denominator: Samples that were not at the goal before the attack.
        excluded: Samples that were; they are no success of the attack.
    """

    successes: int
    denominator: int
    excluded: int

    @property
    def share(self) -> Interval:
        """The rate with its Wilson interval.

        Raises:
            ValueRangeError: Every sample was at the goal before the attack.
        """
        if not self.denominator:
            raise ValueRangeError(
                f"all {self.excluded} samples were at the goal before the attack, so its success rate is undefined.",
                "Choose a goal that the clean images do not reach.",
            )
        return wilson(self.successes, self.denominator)


def success_rate(before: Sequence[bool], under_attack: Sequence[bool]) -> SuccessRate:
    """Count the samples that an attack has brought to its goal.

    Args:
        before: Whether the answer to the clean image was at the goal: wrong, or saying the target sentence.
        under_attack: The same of the attacked image.

    Raises:
        ShapeError: The lengths differ.
        ValueRangeError: There are no samples.
    """
    if len(before) != len(under_attack):
        raise ShapeError(f"{len(before)} clean and {len(under_attack)} attacked answers.", "Give one of each a sample.")
    if not before:
        raise ValueRangeError("a success rate of 0 samples.", "Attack at least one.")
    reached = sum(after and not already for already, after in zip(before, under_attack, strict=True))
    excluded = sum(map(bool, before))
    return SuccessRate(reached, len(before) - excluded, excluded)
