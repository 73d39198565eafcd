from __future__ import annotations

import pytest

from ironclip.errors import ShapeError, ValueRangeError
from ironclip.evaluation.pope import Pope, affirms, pope


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("Yes", True),
        ("yes, there is no doubt", False),
        ("No", False),
        ("No, there is not.", False),
        ("There is not a dog. Yes", False),
        ("Yes. But no cat", True),
        ("nothing", True),
        ("Not that I see", True),
        ("", True),
    ],
)
def test_the_first_sentence_decides(answer, yes):
    assert affirms(answer) is yes


def test_the_five_numbers_counted_by_hand():
    """Yes four times, of which three are so; five are so in all."""
    answers = ["yes", "yes", "yes", "yes", "no", "no", "no", "no", "no", "no"]
    truth = [True, True, True, False, True, True, False, False, False, False]
    assert pope(answers, truth) == Pope(0.7, 0.75, 0.6, pytest.approx(2 * 0.75 * 0.6 / 1.35), 0.4)


def test_shares_of_nothing_are_none():
    assert pope(["no"], [False]) == Pope(1.0, None, None, 0.0, 0.0)
    assert pope(["no"], [True]) == Pope(0.0, None, 0.0, 0.0, 0.0)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match="1 answers for 2 questions"):
        pope(["yes"], [True, False])
    with pytest.raises(ValueRangeError, match="POPE of 0 questions"):
        pope([], [])
