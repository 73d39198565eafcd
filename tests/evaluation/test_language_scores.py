from __future__ import annotations

import pytest

from ironclip.evaluation.language_scores import answer_score, caption_score

CAPTIONS = [["A dog runs on the grass.", "The dog's running."], ["Two cats, on a red mat!", "cats sit on a mat"]]


def test_a_caption_is_cut_into_words_before_it_is_scored():
    score = caption_score(CAPTIONS)
    assert score(0, "a DOG runs on the grass") == score(0, "A dog runs on the grass!")
    assert score(0, CAPTIONS[0][0]) > 400  # one reference of two said word by word: half of 1000, and what they share
    assert score(0, "two cats on a red mat") < 10 < score(1, "two cats on a red mat")
    assert score(0, "") == 0


def test_an_answer_is_scored_against_its_own_image():
    score = answer_score([["yes"] * 10, ["2"] * 3 + ["3"] * 7])
    assert score(0, "Yes.") == 1
    assert score(1, "two") == pytest.approx(0.9)
    assert score(1, "yes") == 0
