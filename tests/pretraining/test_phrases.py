"""What is taught, and above all what is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ironclip.data.bundled import digits, shapes
from ironclip.errors import DataError
from ironclip.pretraining.phrases import (
    TEMPLATES,
    Phrases,
    alike,
    gather_phrases,
    plain,
    read_class_words,
    read_glosses,
    read_unseen,
    read_wordnet,
)

LICENCE = "  1 This software and database is being provided to you, the LICENSEE, by  \n"
INDEX = {
    "noun": "cat n 8 5 @ ~ 8 1 02121620\nguinea_pig n 2 2 @ ~ 2 0 02364840\n1-dodecanol n 1 1 @ 1 0 14954808\n"
    "st._elmo's_fire n 1 1 @ 1 0 11478658\nlaw_of_the_land_and_sea n 1 1 @ 1 0 06532330\n",
    "adj": "red a 3 3 & + = 3 3 00381097\ntwo-piece a 1 1 & 1 0 00568760\n",
    "verb": "cat v 2 1 @ 2 0 01411870\nrun_away v 3 2 @ ~ 3 2 02075049\n",
}
SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def wordnet(tmp_path):
    for part, lines in INDEX.items():
        (tmp_path / f"index.{part}").write_text(LICENCE + lines)
    return tmp_path


def write_classes(folder, entries):
    folder.mkdir(exist_ok=True)
    (folder / "classes.json").write_text(json.dumps(entries))


@pytest.fixture
def root(tmp_path):
    """Hold a data set of three classes, the last of them unseen."""
    write_classes(
        tmp_path / "pets",
        [
            {"label": 0, "name": "cat", "prompt_name": "house cat", "synonyms": ["cat", "Felis catus"]},
            {"label": 1, "name": "dog"},
            {"label": 2, "name": "sea horse", "synonyms": ["seahorse"]},
        ],
    )
    unseen = {"note": "drawn by lot", "pets": [{"label": 2, "name": "sea horse"}], "put_aside": {"pets": ["dog"]}}
    (tmp_path / "unseen_classes.json").write_text(json.dumps(unseen))
    return tmp_path


def test_wordnet_gives_words_of_letters_once_and_no_licence(wordnet):
    assert read_wordnet(wordnet) == ["cat", "guinea pig", "st. elmo's fire", "red", "two-piece", "run away"]


def test_a_folder_without_wordnet_is_named(wordnet):
    (wordnet / "index.adj").unlink()
    with pytest.raises(DataError, match=r"no .*index\.adj"):
        read_wordnet(wordnet)


def test_a_file_that_is_no_index_is_named_with_its_line(wordnet):
    (wordnet / "index.verb").write_text(LICENCE + "00001740 03 n 01 entity 0 003\n")
    with pytest.raises(DataError, match=r"index\.verb is no index of WordNet: line 2"):
        read_wordnet(wordnet)


def test_glosses_are_definitions_and_examples_of_nouns_as_they_stand(tmp_path):
    long = "a " * 20 + "end"
    lines = [
        '02121620 05 n 01 cat 0 001 @ 02120997 n 0000 | feline mammal (small); no roar; "Cats sleep"; "the cat"  ',
        f"02121621 05 n 01 dog 0 001 @ 02120997 n 0000 | {long}  ",
        "02121622 05 n 01 hound 0 001 @ 02120997 n 0000 | feline mammal (small); no roar  ",
    ]
    (tmp_path / "data.noun").write_text(LICENCE + "\n".join(lines) + "\n")
    assert read_glosses(tmp_path) == ["feline mammal (small); no roar", "cats sleep", "the cat"]
    (tmp_path / "data.noun").write_text(LICENCE + "no bar here\n")
    with pytest.raises(DataError, match=r"data\.noun is no file of WordNet: line 2"):
        read_glosses(tmp_path)
    (tmp_path / "data.noun").unlink()
    with pytest.raises(DataError, match=r"no .*data\.noun"):
        read_glosses(tmp_path)


def test_class_words_are_prompt_name_name_and_synonyms(root):
    words = {0: ["house cat", "cat", "Felis catus"], 1: ["dog"], 2: ["sea horse", "seahorse"]}
    assert read_class_words(root / "pets") == words


def test_unseen_classes_are_read_with_all_that_they_are_called(root):
    assert read_unseen(root) == {"pets": {2: ["sea horse", "seahorse"]}}


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (None, "there is no"),
        ({"cat": 0}, "not a list of classes"),
        ([{"name": "cat"}], "not a list of classes"),
    ],
)
def test_unreadable_classes_are_named(tmp_path, entries, words):
    if entries is not None:
        write_classes(tmp_path, entries)
    with pytest.raises(DataError, match=words):
        read_class_words(tmp_path)


def test_classes_that_are_not_json_are_named(tmp_path):
    (tmp_path / "classes.json").write_text("[")
    with pytest.raises(DataError, match=r"classes\.json is not JSON"):
        read_class_words(tmp_path)


def test_an_unseen_class_that_the_data_set_does_not_have_is_named(root):
    (root / "unseen_classes.json").write_text(json.dumps({"pets": [{"label": 7, "name": "newt"}]}))
    with pytest.raises(DataError, match="names label 7 of pets"):
        read_unseen(root)


def test_each_phrase_is_taught_once_and_as_a_class_name_first():
    phrases = gather_phrases(["Cat", "guinea_pig", "cat"], ["dog", "Guinea-Pig", "CAT", " "], ["A dog.", "a  dog."])
    assert phrases == Phrases(("cat", "guinea pig"), ("dog",), ("a dog.",))
    assert phrases.all == ("cat", "guinea pig", "dog", "a dog.")
    assert len(phrases) == 4


def test_what_must_not_be_taught_is_dropped_however_it_is_spelled():
    without = ["Sea Horse", "two-piece"]
    phrases = gather_phrases(
        ["cat", "sea_horse"], ["sea-horse", "two piece", "sea horses"], ["A sea horse."], without=without
    )
    assert phrases.all == ("cat", "sea horses", "a sea horse.")  # other names and sentences may mention it


def test_no_class_name_left_is_an_error():
    with pytest.raises(DataError, match="no class name to teach"):
        gather_phrases(["Sea_horse"], ["cat"], without=["sea horse"])


def test_the_hash_tells_kinds_and_order_apart():
    one = Phrases(("cat",), ("dog",))
    assert one.sha256 == Phrases(("cat",), ("dog",)).sha256
    assert len({one.sha256, Phrases(("cat", "dog")).sha256, Phrases(("dog",), ("cat",)).sha256}) == 3


def test_forms():
    assert plain("  Guinea_Pig ") == "guinea pig"
    assert alike("Two-piece_suit") == "two piece suit"


def test_the_templates_of_the_bundled_sets_are_taught():
    assert {"{}", *digits.TEMPLATES, *shapes.TEMPLATES} <= set(TEMPLATES)
    assert all(template.count("{}") == 1 for template in TEMPLATES)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the development data (../shared/data) are not here")
def test_the_forty_unseen_classes_are_in_no_list():
    unseen = read_unseen(SHARED)
    assert {name: len(classes) for name, classes in unseen.items()} == {"tiny_imagenet": 20, "caltech101": 20}
    banned = [word for classes in unseen.values() for words in classes.values() for word in words]
    names = [
        word
        for name in ("tiny_imagenet", "caltech101")
        for own in read_class_words(SHARED / name).values()
        for word in own
    ]
    phrases = gather_phrases(names, ["handrail", "Kangaroo", "wallaby"], without=banned)
    assert not {alike(word) for word in banned} & {alike(phrase) for phrase in phrases.all}
    assert phrases.words == ("wallaby",)
    for name, classes in unseen.items():
        kept = [word for label, own in read_class_words(SHARED / name).items() if label not in classes for word in own]
        assert not {alike(word) for words in classes.values() for word in words} & {alike(word) for word in kept}
