from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ironclip.errors import ShapeError, ValueRangeError
from ironclip.evaluation.cider import CiderD
from oracles import cider as oracle

CAPTION = st.lists(st.sampled_from(["a", "the", "dog", "cat", "runs", "sits", "on", "grass", "red"]), max_size=9)
SET = st.lists(st.lists(CAPTION, min_size=1, max_size=3), min_size=2, max_size=5)


@settings(max_examples=60, deadline=None)
@given(references=SET, candidate=CAPTION, data=st.data())
def test_equals_the_formula_over_dense_vectors(references, candidate, data):
    image = data.draw(st.integers(0, len(references) - 1))
    found = CiderD(references).score(image, candidate)
    assert found == pytest.approx(oracle.score(references, image, candidate), rel=1e-9, abs=1e-12)
    assert 0 <= found <= 10 + 1e-9


def test_counted_by_hand():
    """Two images, one word each that the other lacks; one-word phrases alone are shared."""
    scorer = CiderD([[["dog"]], [["cat"]]])
    assert scorer.score(0, ["dog"]) == pytest.approx(10 / 4)  # cosine 1 for words, no longer phrases
    assert scorer.score(0, ["cat"]) == 0
    # "dog dog": twice the weight is cut to once; cosine 1/2 of norm 2, and one pair of words too many.
    assert scorer.score(0, ["dog", "dog"]) == pytest.approx(10 / 4 * 0.5 * math.exp(-1 / 72))


def test_a_reference_of_five_words_scores_ten_and_a_word_of_all_images_nothing():
    references = [["one", "two", "three", "four", "five", "it"], ["six", "seven", "eight", "nine", "ten", "it"]]
    scorer = CiderD([[caption] for caption in references])
    assert scorer.mean(references) == pytest.approx(10)
    assert scorer.mean(references[::-1]) == 0
    assert scorer.score(0, ["it"]) == 0
    assert scorer.score(0, []) == 0


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueRangeError, match=r"CIDEr over 1 images.*\n.*two images"):
        CiderD([[["dog"]]])
    with pytest.raises(ValueRangeError, match="image 1 has no reference"):
        CiderD([[["dog"]], []])
    with pytest.raises(ShapeError, match="1 captions for 2 images"):
        CiderD([[["dog"]], [["cat"]]]).mean([["dog"]])
