"""POPE: whether a model sees objects that are not there, by five numbers over yes/no questions.

Source: Li et al., EMNLP 2023, arXiv:2305.10355, section 5; "yes" is the positive class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ironclip.errors import ShapeError, ValueRangeError

_DENIALS = frozenset({"No", "no", "not"})


@dataclass(frozen=True)
class Pope:
    """The five numbers, shares in [0, 1]; None where they are a share of nothing.

    Attributes:
        accuracy: Of all questions.
        precision: Of the questions that the model answers with yes, how many are so.
        recall: Of the questions whose answer is yes, how many the model affirms.
        f1: Harmonic mean of the two; 0 where no yes is right.
        yes_ratio: Of all questions, how many the model affirms.
    """

    accuracy: float
    precision: float | None
    recall: float | None
    f1: float
    yes_ratio: float


def affirms(answer: str) -> bool:
    """Read yes or no out of a sentence: no where the first one holds the word No, no or not, else yes.

    "Not that I see" therefore affirms; the rule is published as it is, and published numbers hang on it.
    """
    first = answer.partition(".")[0].replace(",", "")
    return _DENIALS.isdisjoint(first.split())


def pope(answers: Sequence[str], truth: Sequence[bool]) -> Pope:
    """Score answers to yes/no questions.

    Args:
        answers: What the model said.
        truth: Whether the right answer is yes.

    Raises:
        ShapeError: Not one truth an answer.
        ValueRangeError: There are no answers.
    """
    if len(answers) != len(truth):
        raise ShapeError(f"{len(answers)} answers for {len(truth)} questions.", "Give one answer a question.")
    if not answers:
        raise ValueRangeError("POPE of 0 questions.", "Give at least one.")
    said = [affirms(answer) for answer in answers]
    yes_right = sum(yes and real for yes, real in zip(said, truth, strict=True))
    yes_said, yes_real = sum(said), sum(truth)
    return Pope(
        accuracy=sum(yes == real for yes, real in zip(said, truth, strict=True)) / len(said),
        precision=yes_right / yes_said if yes_said else None,
        recall=yes_right / yes_real if yes_real else None,
        f1=2 * yes_right / (yes_said + yes_real) if yes_said + yes_real else 0.0,
        yes_ratio=yes_said / len(said),
    )
