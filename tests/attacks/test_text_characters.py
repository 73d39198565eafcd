"""Character edits against enumeration: what the searches find, how exact the exact one is, what they do not hang on."""

from __future__ import annotations

import math

import pytest
import torch

from ironclip.attacks.objectives import Evaluation
from ironclip.attacks.text import base
from ironclip.attacks.text.base import TEXT_ATTACKS, best_of
from ironclip.attacks.text.budget import levenshtein
from ironclip.attacks.text.characters import SYMBOLS, Charmer, LeafSearch, SingleEdit, edit, single_edits
from ironclip.attacks.text.constraints import accepts, english_words, known_words
from ironclip.attacks.text.objectives import TextDistance
from ironclip.errors import ConfigError, RegistryError, ValueRangeError
from ironclip.randomness import SampleRandom
from made_up_text_objectives import Scored, landscape
from oracles import texts as oracle

TEXTS = ["a cat", "tax_i", "zq", ""]
LETTERS = SYMBOLS[1:]
SEARCHES = [LeafSearch(constraint="none"), Charmer(constraint="none"), SingleEdit(constraint="none")]


def names(attack):
    return attack.name


def run(attack, texts=TEXTS, seed=0, keys=None, objective=None):
    keys = keys or [f"key {index}" for index in range(len(texts))]
    return attack.perturb(objective or Scored(keys), texts, SampleRandom(seed, keys))


def test_symbols_are_96_and_differ():
    assert len(SYMBOLS) == len(set(SYMBOLS)) == 96
    assert all(len(symbol) == 1 for symbol in LETTERS)


def test_places_and_edits_by_hand():
    """Seven places of "cat": gaps are even, characters odd."""
    assert [edit("cat", place, "x") for place in range(7)] == ["xcat", "xat", "cxat", "cxt", "caxt", "cax", "catx"]
    assert [edit("cat", place, "") for place in range(7)] == ["cat", "at", "cat", "ct", "cat", "ca", "cat"]
    assert edit("cat", 3, "a") == "ct"  # a character "replaced" by itself is deleted
    assert edit("", 0, "x") == "x"


@pytest.mark.parametrize("place", [-1, 7])
def test_a_place_beyond_the_text_is_refused(place):
    with pytest.raises(ValueRangeError, match=rf"place {place} of a text with 3 characters"):
        edit("cat", place, "x")


@pytest.mark.parametrize("text", [*TEXTS, "aa", "naïve"])
def test_single_edits_are_all_strings_within_one_edit(text):
    edits = single_edits(text)
    assert edits[0] == text
    assert len(edits) == len(set(edits))
    assert set(edits) == oracle.within_one_edit(text, LETTERS)
    assert all(oracle.levenshtein(text, other) <= 1 for other in edits)


def test_the_exact_search_finds_the_best_of_all_edits():
    found = run(SingleEdit(constraint="none"))
    for index, (text, attacked) in enumerate(zip(TEXTS, found, strict=True)):
        best = max(oracle.within_one_edit(text, LETTERS), key=lambda other: landscape(f"key {index}", other))
        assert attacked == best


def test_the_exact_search_under_a_constraint_finds_the_best_of_the_allowed_ones():
    text, salt = "a bat on a mat", "key 0"
    (found,) = run(SingleEdit(constraint="no_new_words"), [text])
    allowed = [other for other in oracle.within_one_edit(text, LETTERS) if known_words(other) <= known_words(text)]
    assert found == max(allowed, key=lambda other: landscape(salt, other))
    assert len(allowed) < len(oracle.within_one_edit(text, LETTERS))


def test_charmer_with_all_places_is_exact():
    assert run(Charmer(constraint="none", places=100)) == run(SingleEdit(constraint="none"))


def test_charmer_tries_every_symbol_at_its_best_places():
    text, salt = "a cat", "key 0"
    order = sorted(range(11), key=lambda place: -landscape(salt, edit(text, place, " ")))
    reachable = {text} | {edit(text, place, symbol) for place in order[:2] for symbol in SYMBOLS}
    best = max(reachable, key=lambda other: landscape(salt, other))
    assert run(Charmer(constraint="none", places=2), [text]) == [best]


def test_leaf_with_everything_drawn_is_the_greedy_search():
    """The best place for a space, then the best symbol there."""
    text, salt = "tax_i", "key 0"
    place = max(range(2 * len(text) + 1), key=lambda one: landscape(salt, edit(text, one, " ")))
    best = max([text, *(edit(text, place, symbol) for symbol in SYMBOLS)], key=lambda other: landscape(salt, other))
    assert run(LeafSearch(constraint="none", candidates=96), [text]) == [best]


def test_leaf_asks_for_so_many_texts_however_long_they_are():
    for length in (30, 60):
        objective = Scored(["0"])
        run(LeafSearch(constraint="none", candidates=10), ["xq" * length], objective=objective)
        assert 15 <= len(objective.asked) <= 1 + 10 + 11


@pytest.mark.parametrize("attack", SEARCHES, ids=names)
def test_never_worse_than_doing_nothing_and_never_better_than_the_exact_search(attack):
    exact = run(SingleEdit(constraint="none"))
    for index, (text, found, best) in enumerate(zip(TEXTS, run(attack), exact, strict=True)):
        before, after, most = (landscape(f"key {index}", one) for one in (text, found, best))
        assert before <= after <= most
        assert oracle.levenshtein(text, found) <= 1


@pytest.mark.parametrize("attack", SEARCHES, ids=names)
def test_a_text_that_cannot_be_made_worse_stays(attack):
    def best_as_it_is(salt, text):
        return float(text == "a cat")

    assert run(attack, ["a cat"], objective=Scored(["0"], best_as_it_is)) == ["a cat"]


@pytest.mark.parametrize("edits", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", [LeafSearch, Charmer])
def test_so_many_edits_and_no_more(kind, edits):
    """Where every further "!" pays, the whole budget is spent."""

    def exclaims(salt, text):
        return float(text.count("!")) + 0.01 * text.count(" ")

    attack = kind(edits=edits, constraint="none", **({"candidates": 96} if kind is LeafSearch else {}))
    (found,) = run(attack, ["wow"], objective=Scored(["0"], exclaims))
    assert levenshtein("wow", found) == found.count("!") == edits


@pytest.mark.parametrize("kind", [LeafSearch, Charmer])
def test_more_edits_never_hurt(kind):
    values = []
    for edits in (1, 2, 3):
        (found,) = run(kind(edits=edits, constraint="none"), ["tax_i"])
        values.append(landscape("key 0", found))
    assert values == sorted(values)


def test_a_text_that_has_won_is_left_alone():
    """Of two edits only one is made where one is enough, and none where the text has won already."""

    def length(salt, text):
        return float(len(text))

    for start, expected in (("abc", 4), ("abcd", 4), ("abcde", 5)):
        (found,) = run(Charmer(edits=2, constraint="none"), [start], objective=Scored(["0"], length, goal=4))
        assert len(found) == expected


def test_a_win_is_preferred_to_a_larger_value():
    evaluation = Evaluation(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([False, True, True]))
    assert best_of(evaluation, 0.0) == 2


def test_of_equal_values_the_first_is_taken_and_nan_never():
    never = torch.zeros(4, dtype=torch.bool)
    assert best_of(Evaluation(torch.tensor([1.0, 2.0, 2.000001, math.nan]), never), 0.0) == 1
    assert best_of(Evaluation(torch.tensor([1.0, 1.99, 2.0, 0.0]), never), 0.1) == 1
    assert best_of(Evaluation(torch.full((4,), math.nan), never), 0.0) == 0
    assert best_of(Evaluation(torch.tensor([-1.0, 0.0, math.inf, 5.0]), never), 0.0) == 2


@pytest.mark.parametrize("attack", SEARCHES, ids=names)
def test_nan_is_never_chosen(attack):
    def nan_but_for_one(salt, text):
        return 1.0 if text in ("a cat ", "a  cat", "a cat") else math.nan

    (found,) = run(attack, ["a cat"], objective=Scored(["0"], nan_but_for_one))
    assert found in ("a cat ", "a  cat", "a cat")


@pytest.mark.parametrize("attack", SEARCHES, ids=names)
def test_results_do_not_hang_on_batch_size_or_order(attack, monkeypatch):
    keys = [f"key {index}" for index in range(len(TEXTS))]
    whole = run(attack, keys=keys)
    alone = [run(attack, [text], keys=[key])[0] for text, key in zip(TEXTS, keys, strict=True)]
    back = run(attack, TEXTS[::-1], keys=keys[::-1])[::-1]
    monkeypatch.setattr(base, "QUERIES", 7)
    assert whole == alone == back == run(attack, keys=keys)


@pytest.mark.parametrize("attack", SEARCHES, ids=names)
def test_results_on_clip_do_not_hang_on_batch_size_or_order(attack, tiny_clip):
    """CLIP's tokenizer folds case, so many candidates are equal up to the order of additions."""
    model, texts = tiny_clip(), ["Ox", "a fox", "An Ox"]
    keys = ["0", "1", "2"]

    def attacked(rows):
        chosen = [texts[row] for row in rows]
        objective = TextDistance(model, model.embed_text(chosen).detach())
        return attack.perturb(objective, chosen, SampleRandom(3, [keys[row] for row in rows]))

    whole = attacked([0, 1, 2])
    assert [attacked([row])[0] for row in range(3)] == whole
    assert attacked([2, 0, 1]) == [whole[2], whole[0], whole[1]]
    assert whole != texts


def test_draws_are_those_of_seed_and_key():
    attack = LeafSearch(constraint="none", candidates=3)
    texts, keys = ["some words here"] * 6, ["k"] * 6
    assert len(set(run(attack, texts, keys=keys))) == 1
    assert len(set(run(attack, texts, objective=Scored(["same"] * 6)))) > 1
    assert run(attack, texts, seed=0) != run(attack, texts, seed=1)
    assert run(attack, texts, seed=5) == run(attack, texts, seed=5)


def test_d16_the_last_candidate_is_tried(monkeypatch):
    """The best edit is the last of the list: "~" behind the text."""

    def last(salt, text):
        return float(text == "ox~") + 0.5 * (text == "ox ")

    def finds_it():
        searches = (Charmer(constraint="none", places=1), SingleEdit(constraint="none"))
        return [run(one, ["ox"], objective=Scored(["0"], last)) for one in searches]

    assert finds_it() == [["ox~"], ["ox~"]]
    evaluate = base.evaluate

    def forgets_the_last(objective, candidates):
        found = evaluate(objective, candidates)
        for one in found:
            one.value[-1] = -torch.inf
        return found

    monkeypatch.setattr("ironclip.attacks.text.characters.evaluate", forgets_the_last)
    assert finds_it() != [["ox~"], ["ox~"]]


def test_an_evaluation_has_a_value_for_every_candidate():
    objective = Scored(["0", "1"])
    first, second = base.evaluate(objective, [["a", "b", "a"], ["c"]])
    assert first.value.tolist() == [landscape("0", one) for one in "aba"]
    assert second.value.tolist() == [landscape("1", "c")]
    assert len(objective.asked) == 3  # what is equal is asked once


# What may be edited


def test_known_words_are_those_of_the_list():
    assert known_words("A cat's Photo, 3 zorgs!") == {"a", "cat", "photo"}
    assert all(word == word.lower() and word.isalpha() for word in english_words())
    assert len(english_words()) > 700


@pytest.mark.parametrize(
    ("after", "no_new_words", "leaf"),
    [
        ("a bat", False, False),  # another word
        ("a czt", True, True),  # one fewer
        ("a cat!", True, False),  # as many
        ("a c at", False, False),  # "at" is new, though as many are known
        ("acat", True, True),
    ],
)
def test_constraints_by_hand(after, no_new_words, leaf):
    assert accepts("none", "a cat", after)
    assert accepts("no_new_words", "a cat", after) is no_new_words
    assert accepts("leaf", "a cat", after) is leaf


def test_the_coded_rule_lets_one_new_word_replace_two():
    assert accepts("leaf", "so on", "son")
    assert not accepts("no_new_words", "so on", "son")


@pytest.mark.parametrize("kind", [LeafSearch, Charmer, SingleEdit])
@pytest.mark.parametrize("constraint", ["no_new_words", "leaf"])
def test_no_search_leaves_its_constraint(kind, constraint):
    texts = ["a cat on a mat", "the zorg", "zorg"]
    for text, found in zip(texts, run(kind(constraint=constraint), texts), strict=True):
        assert found == text or accepts(constraint, text, found)
    if constraint == "leaf":
        assert run(kind(constraint="leaf"), ["zorg"]) == ["zorg"]  # no known word, so no edit


def test_characters_that_the_tokenizer_cuts_off_are_not_edited(tiny_clip):
    model = tiny_clip()
    text = " ".join(["elephant"] * 100)
    objective = TextDistance(model, model.embed_text([text, "a cat"]).detach())
    read, whole = objective.lengths_read([text, "a cat"])
    assert whole == len("a cat")
    assert read < len(text)
    assert torch.equal(model.tokenize([text[:read] + " zebra" * 50]), model.tokenize([text]))
    assert not torch.equal(model.tokenize([text[: read - 1]]), model.tokenize([text]))
    (found,) = LeafSearch(constraint="none").perturb(objective.take(torch.tensor([0])), [text], SampleRandom(0, ["0"]))
    assert found != text
    assert found.endswith(text[read + 1 :])


# Settings


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("leaf", {"edits": -1}, "edits are -1"),
        ("charmer", {"edits": -1}, "edits are -1"),
        ("leaf", {"candidates": 0}, "candidates are 0"),
        ("charmer", {"places": 0}, "places are 0"),
        ("single_edit", {"edits": 2}, 'unknown key "edits"'),
        ("leaf", {"constraint": "some"}, "no_new_words"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name, options, words):
    with pytest.raises(ConfigError, match=words):
        TEXT_ATTACKS.create(name, options)


def test_text_attacks_are_found_by_name():
    assert {"leaf", "charmer", "single_edit", "synonyms", "bert_attack"} <= set(TEXT_ATTACKS)
    with pytest.raises(RegistryError, match=r'unknown attack "charmar"\. Did you mean "charmer"'):
        TEXT_ATTACKS.get("charmar")
