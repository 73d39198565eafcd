"""A sentence encoder of two layers with random weights, against transformers used the plain way."""

from __future__ import annotations

import json
import sys

import pytest
import torch
import torch.nn.functional as F

from ironclip.errors import MissingDependencyError, WeightsError
from ironclip.pretraining import encoder as module
from ironclip.pretraining.encoder import SentenceEncoder, encode_once

transformers = pytest.importorskip("transformers")

TEXTS = ["a red cat", "dog", "a dog and a red cat", "cat", "red dog"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat", "dog", "and"]


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def test_rows_are_the_mean_of_the_token_vectors_whatever_the_batch(encoder_folder, monkeypatch):
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder_folder)
    model = transformers.AutoModel.from_pretrained(encoder_folder).eval()
    with torch.no_grad():
        rows = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0) for text in TEXTS]
    wanted = F.normalize(torch.stack(rows), dim=-1)
    for batch in (2, 256):
        monkeypatch.setattr(module, "_BATCH", batch)
        torch.testing.assert_close(SentenceEncoder(encoder_folder).encode(TEXTS), wanted, atol=1e-5, rtol=0)


def test_long_texts_are_cut(encoder_folder):
    rows = SentenceEncoder(encoder_folder).encode(["red " * 126, "red " * 300])
    torch.testing.assert_close(rows[0], rows[1])


def test_progress_counts_texts(encoder_folder):
    seen = []
    SentenceEncoder(encoder_folder).encode(TEXTS, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (5, 5)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_what_was_encoded_is_kept(encoder_folder, tmp_path, monkeypatch):
    encoder = SentenceEncoder(encoder_folder)
    first = encode_once(encoder, TEXTS, tmp_path)
    torch.testing.assert_close(first, encoder.encode(TEXTS), rtol=0, atol=0)
    (names,) = tmp_path.glob("*.json")
    assert json.loads(names.read_text()) == TEXTS
    monkeypatch.setattr(SentenceEncoder, "encode", None)  # would fail if it were called
    assert torch.equal(encode_once(encoder, TEXTS, tmp_path), first)
    monkeypatch.undo()
    encode_once(encoder, TEXTS[1:], tmp_path)
    assert len(list(tmp_path.glob("sentence-*.safetensors"))) == 2


def test_other_weights_do_not_share_what_is_kept(encoder_folder, tmp_path):
    encoder = SentenceEncoder(encoder_folder)
    encode_once(encoder, TEXTS, tmp_path)
    encoder.sha256 = "other"
    encode_once(encoder, TEXTS, tmp_path)
    assert len(list(tmp_path.glob("sentence-*.safetensors"))) == 2


def test_a_damaged_keep_is_named(encoder_folder, tmp_path):
    encoder = SentenceEncoder(encoder_folder)
    encode_once(encoder, TEXTS, tmp_path)
    (kept,) = tmp_path.glob("*.safetensors")
    kept.write_bytes(kept.read_bytes()[:50])
    with pytest.raises(WeightsError, match="truncated"):
        encode_once(encoder, TEXTS, tmp_path)


def test_a_folder_without_an_encoder_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"no .*config\.json"):
        SentenceEncoder(tmp_path)


def test_without_transformers_the_install_line_is_given(encoder_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r"sentence encoder needs .*\n.*ironclip\[hf\]"):
        SentenceEncoder(encoder_folder)
