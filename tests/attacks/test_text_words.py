"""Word substitutions with tables and language models that are made up, and with a small BERT on disk."""

from __future__ import annotations

import json
import math
import string

import pytest
import torch
import torch.nn.functional as F

from ironclip.attacks.text import words as words_module
from ironclip.attacks.text.base import TEXT_ATTACKS
from ironclip.attacks.text.language_models import load_masked_language_model
from ironclip.attacks.text.words import STOP_WORDS, BertAttack, Synonyms, masked_substitutes
from ironclip.errors import ConfigError, DataError, MissingDependencyError, WeightsError
from ironclip.randomness import SampleRandom
from made_up_text_objectives import Scored, landscape


def run(attack, texts, objective=None):
    keys = [f"key {index}" for index in range(len(texts))]
    return attack.perturb(objective or Scored(keys), texts, SampleRandom(0, keys))


@pytest.fixture
def table(tmp_path):
    """Put a table on disk and return its path."""

    def write(content):
        path = tmp_path / "table.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


# Synonyms


def test_the_best_substitute_of_the_most_important_word_is_taken(table):
    """The second word matters most; among its substitutes "cc" does most harm."""
    values = {"a1 [UNK]": 9.0, "[UNK] b1": 1.0, "a1 b1": 0.0, "a1 bb": 1.0, "a1 cc": 2.0, "aa b1": 5.0}
    attack = Synonyms(table=table({"a1": ["aa"], "b1": ["bb", "cc"]}))
    assert run(attack, ["a1 b1"], Scored(["0"], lambda _, text: values[text])) == ["a1 cc"]


def test_a_word_that_is_best_as_it_is_costs_nothing(table):
    values = {"a1 [UNK]": 9.0, "[UNK] b1": 1.0, "a1 b1": 3.0, "a1 bb": 1.0, "aa b1": 5.0}
    attack = Synonyms(table=table({"a1": ["aa"], "b1": ["bb"]}))
    assert run(attack, ["a1 b1"], Scored(["0"], lambda _, text: values[text])) == ["aa b1"]


@pytest.mark.parametrize("words", [0, 1, 2, 3])
def test_so_many_words_and_no_more(words, table):
    attack = Synonyms(words=words, table=table({"dog": ["hound"]}))
    objective = Scored(["0"], lambda _, text: float(text.count("hound") + text.count("[UNK]")))
    (found,) = run(attack, ["dog dog dog dog"], objective)
    assert found.split(" ").count("hound") == words


def test_it_stops_where_it_has_won(table):
    objective = Scored(["0"], lambda _, text: float(text.count("hound") + text.count("[UNK]")), goal=1)
    (found,) = run(Synonyms(words=3, table=table({"dog": ["hound"]})), ["dog dog dog"], objective)
    assert found.split(" ").count("hound") == 1


def test_case_and_punctuation_are_kept(table):
    attack = Synonyms(table=table({"dog": ["hound"], "cat": ["kitty"]}))
    objective = Scored(["0"] * 4, lambda _, text: float("ound" in text or "itty" in text))
    texts = ['a "dog".', "Dog here", "dogs", "(Cat)"]
    assert run(attack, texts, objective) == ['a "hound".', "Hound here", "dogs", "(Kitty)"]


def test_stop_words_and_useless_substitutes_are_left_out(table):
    offered = Synonyms(
        table=table({"the": ["zorg"], "dog": ["dog", "hound", "hound", "##og", "two words", "then", ""]})
    )
    assert offered.substitutes(["the dog"], torch.device("cpu")) == [[[], ["hound"]]]


def test_the_bundled_table_is_one():
    table = words_module._read_table("")
    assert len(table) > 150
    for word, others in table.items():
        assert word == word.lower()
        assert others
        assert len(set(others)) == len(others)
        assert words_module._useful(word, others) == others, word


def test_the_bundled_table_changes_a_prompt():
    (found,) = run(Synonyms(), ["a photo of a cat."])
    assert found != "a photo of a cat."
    assert sum(a != b for a, b in zip(found.split(" "), ["a", "photo", "of", "a", "cat."], strict=True)) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "is not JSON"), ([1], "is no table"), ({"a": "b"}, "is no table"), ({"a": [1]}, "is no")],
)
def test_a_file_that_is_no_table_is_refused(content, words, table):
    with pytest.raises(DataError, match=words):
        run(Synonyms(table=table(content)), ["a dog"])


def test_a_table_that_is_not_there_is_named():
    with pytest.raises(DataError, match=r"no table of synonyms /nowhere/table\.json"):
        run(Synonyms(table="/nowhere/table.json"), ["a dog"])


def test_results_do_not_hang_on_batch_or_order():
    texts = ["a photo of a cat", "this is a photo of a red bus", "zorg", "the big dog and a small frog"]
    keys = [str(index) for index in range(4)]
    whole = Synonyms(words=2).perturb(Scored(keys), texts, SampleRandom(0, keys))
    alone = [run_one(text, key) for text, key in zip(texts, keys, strict=True)]
    back = Synonyms(words=2).perturb(Scored(keys[::-1]), texts[::-1], SampleRandom(0, keys[::-1]))[::-1]
    assert whole == alone == back
    assert whole[2] == "zorg"


def run_one(text, key):
    return Synonyms(words=2).perturb(Scored([key]), [text], SampleRandom(0, [key]))[0]


# Masked language models


class Toy:
    """A word is a token, "+" cuts a word in pieces; at each place the model writes what stands there, then more."""

    def __init__(self, more=(), scores=None):
        self.vocabulary = ["[CLS]", "[SEP]"]
        self.more, self.scores = [self.id(word) for word in more], scores
        self.filled = []

    def id(self, word):
        if word not in self.vocabulary:
            self.vocabulary.append(word)
        return self.vocabulary.index(word)

    def pieces(self, word):
        return [self.id(piece) for piece in word.split("+")]

    def fill(self, sequences, count):
        self.filled.append([list(one) for one in sequences])
        found = []
        for ids in sequences:
            rows = torch.tensor([[token, *self.more] for token in [0, *ids, 1]])[:, :count]
            scores = torch.tensor(self.scores or [5.0] * rows.shape[1]).expand(len(rows), -1)[:, :count]
            found.append((rows, scores))
        return found

    def perplexity(self, sequences):
        return [landscape("perplexity", str(list(one))) for one in sequences]

    def word(self, ids):
        return "+".join(self.vocabulary[token] for token in ids)


def as_the_model_wrote(monkeypatch):
    """Keep substitutes that equal the word."""
    monkeypatch.setattr(words_module, "_useful", lambda word, others: list(others))


def test_d07_substitutes_stand_where_their_word_does(monkeypatch):
    """A model that returns each token at its own place gives each word itself; without the shift, the one before."""
    as_the_model_wrote(monkeypatch)
    text = "red green blue"
    assert masked_substitutes(Toy(), [text]) == [[["red"], ["green"], ["blue"]]]
    assert masked_substitutes(Toy(), [text], offset=0) == [[["[CLS]"], ["red"], ["green"]]]


@pytest.mark.parametrize(("variant", "expected"), [("paper", ["green"]), ("code", ["red"])])
def test_the_variant_says_where_a_token_stands(variant, expected, monkeypatch):
    as_the_model_wrote(monkeypatch)
    monkeypatch.setattr(words_module, "load_masked_language_model", lambda *_: Toy())
    attack = BertAttack(language_model="toy", variant=variant)
    assert attack.substitutes(["red green"], torch.device("cpu"))[0][1] == expected


def test_tokens_end_at_the_first_low_score():
    toy = Toy(["lime", "olive", "jade"], [5.0, 0.3, 0.29, 4.0])
    assert masked_substitutes(toy, ["green"], threshold=0.3) == [[["lime"]]]
    assert masked_substitutes(toy, ["green"], threshold=0.0) == [[["lime", "olive", "jade"]]]
    assert masked_substitutes(toy, ["green"], threshold=0.0, candidates=3) == [[["lime", "olive"]]]


def test_several_pieces_are_replaced_by_the_likeliest_combinations():
    toy = Toy(["p", "q"])
    ((found,),) = masked_substitutes(toy, ["x+y"])
    pairs = [f"{a}+{b}" for a in ("x", "p", "q") for b in ("y", "p", "q")]
    by_perplexity = sorted(pairs, key=lambda pair: toy.perplexity([toy.pieces(pair)]))
    assert found == [pair for pair in by_perplexity if pair != "x+y"]


def test_at_most_24_combinations_of_four_tokens():
    toy = Toy(["p", "q", "r", "s", "t"])
    ((found,),) = masked_substitutes(toy, ["x+y+z"])
    assert len(found) == 23  # the word itself is none
    assert not any("s" in one or "t" in one for one in found)


def test_words_that_the_model_has_not_read_stay(monkeypatch):
    toy = Toy(["lime"])
    (found,) = masked_substitutes(toy, ["b1 b2 b3+b4 b5"], max_length=5)
    assert found == [["lime"], ["lime"], [], []]
    assert [len(ids) for ids in toy.filled[0]] == [3]


def test_stop_words_are_neither_replaced_nor_offered():
    assert masked_substitutes(Toy(["the", "lime"]), ["the green , ."]) == [[[], ["lime"], [], []]]
    assert {"the", "of", "a", "."} <= STOP_WORDS
    assert "The" not in STOP_WORDS  # case counts, as published
    assert "photo" not in STOP_WORDS


def test_equal_texts_are_read_once(monkeypatch):
    toy = Toy(["lime"])
    monkeypatch.setattr(words_module, "load_masked_language_model", lambda *_: toy)
    objective = Scored(["0", "1", "2"], lambda _, text: float("lime" in text))
    assert run(BertAttack(language_model="toy"), ["green", "green", "green"], objective) == ["lime"] * 3
    assert len(toy.filled[0]) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "language_model: Field required|language_model"),
        ({"language_model": "x", "candidates": 0}, "candidates: 0"),
        ({"language_model": "x", "max_length": 2}, "max_length: 2"),
        ({"language_model": "x", "words": -1}, "words are -1"),
        ({"language_model": "x", "variant": "other"}, "variant"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        TEXT_ATTACKS.create("bert_attack", options)


# transformers


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """Put a BERT of one small layer with a vocabulary of its own on disk."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("models") / "bert"
    folder.mkdir()
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "photo",
        "picture",
        "of",
        "cat",
        "dog",
        "##s",
        "tom",
        "##cat",
    ]
    vocabulary += list(string.ascii_lowercase[1:])
    model = tokenizers.models.WordPiece({token: index for index, token in enumerate(vocabulary)}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    marks = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(folder)
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    torch.random.set_rng_state(torch_state)
    return folder


def test_bert_reads_words_as_its_tokenizer_does(bert):
    model = load_masked_language_model(str(bert))
    assert model.word(model.pieces("cat")) == "cat"
    assert len(model.pieces("tomcats")) == 3
    assert model.word(model.pieces("tomcats")) == "tomcats"
    assert model.word(model.pieces("zürich")) == ""  # unknown: a mark of the model, no word
    assert model.word(model.pieces("cats")[1:]) == "##s"  # a piece alone is no word, and is dropped later


def test_bert_says_the_same_whatever_the_batch(bert):
    model = load_masked_language_model(str(bert))
    sequences = [model.pieces("photo") + model.pieces("cat"), model.pieces("dog"), model.pieces("tomcats")]
    whole = model.fill(sequences, 5)
    for ids, (tokens, scores) in zip(sequences, whole, strict=True):
        assert tokens.shape == scores.shape == (len(ids) + 2, 5)
        (alone,) = model.fill([ids], 5)
        assert torch.equal(alone[0], tokens)
        torch.testing.assert_close(alone[1], scores)


def test_perplexity_is_that_of_the_definition(bert):
    model = load_masked_language_model(str(bert))
    ids = model.pieces("tomcats")
    tokenizer = model.tokenizer
    logits = model.model(torch.tensor([[tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]])).logits[0, 1:-1]
    rows = F.log_softmax(logits.double(), dim=-1)
    mean = -sum(rows[place, token].item() for place, token in enumerate(ids)) / len(ids)
    assert model.perplexity([ids])[0] == pytest.approx(math.exp(mean), rel=1e-5)


def test_bert_attack_replaces_one_word(bert):
    attack = BertAttack(language_model=str(bert), threshold=-100.0)
    texts = ["photo of a cat", "dog"]
    found = run(attack, texts)
    assert found != texts
    for text, attacked in zip(texts, found, strict=True):
        assert sum(a != b for a, b in zip(text.split(" "), attacked.split(" "), strict=True)) <= 1
    assert run(attack, texts[::-1], Scored(["key 1", "key 0"]))[::-1] == found


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(WeightsError, match="there is no masked language model in"):
        run(BertAttack(language_model=str(tmp_path)), ["a dog"])
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(WeightsError, match="holds no masked language model"):
        run(BertAttack(language_model=str(tmp_path)), ["a dog"])


def test_without_transformers_the_install_line_is_given(bert, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    load_masked_language_model.cache_clear()
    with pytest.raises(MissingDependencyError, match="bert_attack needs the package transformers") as caught:
        load_masked_language_model(str(bert))
    assert "ironclip[hf]" in caught.value.remedy
