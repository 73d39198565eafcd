from __future__ import annotations

import random

import pytest

from ironclip.attacks.text.base import TextAttack
from ironclip.attacks.text.budget import Budget, changed_words, levenshtein
from ironclip.errors import ConfigError, RunFailedError, ShapeError
from ironclip.randomness import SampleRandom
from made_up_text_objectives import Scored
from oracles import texts as oracle


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("cat", "cat", 0),
        ("cat", "cut", 1),
        ("cat", "cats", 1),
        ("kitten", "sitting", 3),
        ("abab", "baba", 2),
        ("aaa", "aa", 1),
        ("naïve", "naive", 1),
    ],
)
def test_levenshtein_by_hand(first, second, distance):
    assert levenshtein(first, second) == levenshtein(second, first) == distance


def test_levenshtein_equals_the_recursion():
    draw = random.Random(0)
    for _ in range(300):
        # Two letters make many equal beginnings and ends, which the shortcut removes.
        first, second = ("".join(draw.choices("ab", k=draw.randrange(9))) for _ in range(2))
        assert levenshtein(first, second) == oracle.levenshtein(first, second)


@pytest.mark.parametrize(
    ("first", "second", "count"),
    [
        ("a photo of a cat", "a photo of a cat", 0),
        ("a photo of a cat", "a picture of a dog", 2),
        ("a photo of a cat", "a photo of cat", 1),
        ("a cat", "a  cat", 1),  # another space is another (empty) word
        ("", "word", 1),
    ],
)
def test_changed_words(first, second, count):
    assert changed_words(first, second) == count == oracle.levenshtein(first.split(" "), second.split(" "))


def test_a_budget_allows_what_lies_within_all_of_its_limits():
    assert Budget(characters=1).allows("cat", "cats")
    assert not Budget(characters=1).allows("cat", "dog")
    assert Budget(words=1).allows("a cat", "a hippopotamus")
    assert not Budget(words=1).allows("a cat", "the hippopotamus")
    assert not Budget(characters=3, words=1).allows("a cat", "a hippopotamus")
    assert Budget().allows("a", "b c d")


@pytest.mark.parametrize("limits", [{"characters": -1}, {"words": -2}])
def test_a_negative_budget_is_refused(limits):
    with pytest.raises(ConfigError, match=r"a budget of -[12] (characters|words)"):
        Budget(**limits)


class Liar(TextAttack):
    """Says one edit and makes two."""

    name = "liar"
    budget = Budget(characters=1)

    def search(self, objective, texts, random):
        return [text + "!!" for text in texts]


def test_an_attack_that_leaves_its_budget_is_not_believed():
    with pytest.raises(RunFailedError, match=r'"liar" left its budget .*"cat" became "cat!!"') as caught:
        Liar().perturb(Scored(["0"]), ["cat"], SampleRandom(0, ["0"]))
    assert "defect of the attack" in caught.value.remedy


def test_each_text_needs_a_key():
    with pytest.raises(ShapeError, match="1 sample keys for 2 texts"):
        Liar().perturb(Scored(["0", "1"]), ["cat", "dog"], SampleRandom(0, ["0"]))


def test_no_text_is_no_work():
    assert Liar().perturb(Scored([]), [], SampleRandom(0, [])) == []
