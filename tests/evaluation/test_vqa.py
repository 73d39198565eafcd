from __future__ import annotations

import pytest

from ironclip.errors import ValueRangeError
from ironclip.evaluation.vqa import frequent_answers, normalise_answer, vqa_accuracy


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("The 2 dogs.", "2 dogs"),
        ("Two", "2"),
        ("none", "0"),
        ("A\nred\tball", "red ball"),
        ("dont know", "don't know"),
        ("couldntve", "couldn't've"),
        ("wouldn'tve", "wouldn't've"),
        ("its", "its"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("black/white", "black white"),
        ("t-shirt", "t shirt"),
        ("yes, it is", "yes it is"),
        ("left - right", "left right"),
        ("St. Louis!", "st louis"),
        ("an apple, a pear", "apple pear"),
        ("", ""),
    ],
)
def test_answers_are_written_alike(text, written):
    assert normalise_answer(text) == written


@pytest.mark.parametrize(("agree", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_three_who_agree_make_it_right(agree, accuracy):
    """One of ten: nine ways of leaving one out keep it, 9 * 1/3 / 10 = 0.3; so on by hand."""
    references = ["yes"] * agree + [f"other {place}" for place in range(10 - agree)]
    assert vqa_accuracy("Yes.", references) == pytest.approx(accuracy)


def test_references_are_written_alike_too():
    assert vqa_accuracy("2 dogs", ["the two dogs"] * 4 + ["cats"] * 6) == 1


def test_one_reference_is_refused():
    with pytest.raises(ValueRangeError, match=r"1 reference answers.*\n.*leaves one out"):
        vqa_accuracy("yes", ["yes"])


def test_frequent_answers_come_first_and_once():
    assert frequent_answers(["no", "yes", "maybe", "yes", "no", "2"]) == ["no", "yes", "maybe", "2"]
