from __future__ import annotations

import pytest

from ironclip.evaluation.caption_tokens import caption_tokens


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man rides a horse .", "a man rides a horse"),
        ("The dog's ball isn't red, it's blue!", "the dog 's ball is n't red it 's blue"),
        ("two dogs' bowls", "two dogs bowls"),
        ("They couldn't've known", "they could n't 've known"),
        ("I can't; she cannot; they're gonna", "i ca n't she can not they 're gon na"),
        ("black-and-white photo -- framed", "black-and-white photo framed"),
        ('a sign reads "Stop" ...', "a sign reads stop"),
        ("a ``quoted'' word", "a quoted word"),
        ("1,000 people at 10:30, 3.5 feet", "1,000 people at 10:30 3.5 feet"),
        ("a 5.5-inch knife", "a 5.5-inch knife"),
        ("it is 4 o'clock in the U.S.", "it is 4 o'clock in the u.s."),
        ("Mr. Smith and Dr. Jones", "mr. smith and dr. jones"),
        ("no. 7", "no. 7"),
        ("he says no.", "he says no"),
        ("a white/black cat", r"a white\/black cat"),
        ("$5 & 20% #1", "$ 5 & 20 % # 1"),
        ("AT&T and black&white", "at&t and black & white"),
        ("a cat (sleeping)", "a cat -lrb- sleeping -rrb-"),
        ("a bus from the '80s", "a bus from the '80s"),
        ("the woman\u2019s hat \u2014 new", "the woman 's hat new"),
        ("", ""),
    ],
)
def test_words_are_cut_as_the_treebank_does(text, words):
    assert caption_tokens(text) == words.split()


def test_cutting_again_changes_nothing_of_plain_words():
    words = caption_tokens("A Small dog, two cats and a black-and-white bird sit on 3 chairs.")
    assert caption_tokens(" ".join(words)) == words
