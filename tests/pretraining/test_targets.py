"""Where phrases are laid: what is alike lies together, what must not be learned is nowhere, the same every time."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from ironclip.errors import ConfigError, DataError, ShapeError, ValueRangeError, WeightsError
from ironclip.pretraining.geometry import PENALTIES
from ironclip.pretraining.phrases import Phrases
from ironclip.pretraining.targets import (
    ClipText,
    Targets,
    TargetSettings,
    load_targets,
    make_targets,
    read_clip_text,
    save_targets,
)

ANIMALS = ("cat", "dog", "wolf", "fox", "hen", "owl")
WORDS = tuple(f"{colour} {animal}" for colour in ("red", "blue", "tall", "old") for animal in ANIMALS)
PHRASES = Phrases(ANIMALS, WORDS, ("a red cat and a dog.",))
KNOWN = tuple(f"{colour} {animal}" for colour in ("red", "blue", "tall") for animal in ANIMALS[:4])


def vector(word, width):
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(width)).float()


def encode(texts, width=12):
    """Stand for a sentence encoder: a text lies at the sum of its words, plus what all texts share."""
    rows = [torch.stack([vector(word, width) for word in text.split()]).sum(dim=0) + 2 for text in texts]
    return F.normalize(torch.stack(rows), dim=-1)


@pytest.fixture
def clip_text():
    """Give embeddings that are another encoder's: its words lie elsewhere, in more dimensions."""
    return ClipText(KNOWN, encode(KNOWN, 20), "hash")


def test_settings_are_checked():
    for wrong, words in (
        ({"kind": "glove"}, "targets.kind is .glove"),
        ({"width": 0}, "targets.width is 0"),
        ({"whitening": 1.5}, r"targets.whitening is 1\.5"),
        ({"class_share": -0.1}, r"targets.class_share is -0\.1"),
    ):
        with pytest.raises(ConfigError, match=words):
            TargetSettings(**wrong)


@pytest.mark.parametrize("kind", ["sentence", "clip", "both"])
def test_targets_are_unit_rows_that_are_the_same_every_time(kind, clip_text):
    settings = TargetSettings(kind=kind, width=5)
    targets = make_targets(PHRASES, settings, encode, clip_text)
    assert targets.rows.shape == (len(PHRASES), 5)
    assert targets.rows.dtype == torch.float32
    torch.testing.assert_close(targets.rows.norm(dim=1), torch.ones(len(PHRASES)))
    again = make_targets(PHRASES, settings, encode, clip_text)
    assert torch.equal(again.rows, targets.rows)
    assert again.record == targets.record
    assert 0 < targets.record["variance_kept"] <= 1
    assert targets.record["kind"] == kind


def test_all_axes_keep_the_angles_of_the_centred_sentence_encoder():
    targets = make_targets(PHRASES, TargetSettings(kind="sentence", width=10, whitening=0, class_share=0), encode)
    rows = encode(PHRASES.all)[len(ANIMALS) :]  # without a share, class names have no say in centre and axes
    around = F.normalize(rows - rows.mean(dim=0), dim=-1)
    wanted = F.normalize(around - around.mean(dim=0), dim=-1)
    found = targets.rows[len(ANIMALS) :]
    torch.testing.assert_close(found @ found.T, wanted @ wanted.T, atol=1e-4, rtol=0)


def test_whitening_parts_what_lies_close():
    close, apart = (
        make_targets(PHRASES, TargetSettings(kind="sentence", width=10, whitening=whitening), encode).of(ANIMALS)
        for whitening in (0, 1)
    )

    def alikeness(rows):
        return (rows @ rows.T).fill_diagonal_(0).square().sum()

    assert alikeness(apart) < alikeness(close)


def test_the_classes_share_moves_the_axes_to_the_classes():
    def kept(share):
        targets = make_targets(
            PHRASES, TargetSettings(kind="sentence", width=4, whitening=0, class_share=share), encode
        )
        rows = encode(ANIMALS)
        true = F.normalize(rows - rows.mean(dim=0), dim=-1)
        found = F.normalize(targets.of(ANIMALS) - targets.of(ANIMALS).mean(dim=0), dim=-1)
        return (true @ true.T - found @ found.T).square().sum()

    assert kept(1.0) < kept(0.0)


def test_both_gives_each_encoder_half(clip_text):
    def rows(kind, width):
        settings = TargetSettings(kind=kind, width=width, whitening=0, class_share=0)
        return make_targets(PHRASES, settings, encode, clip_text).rows

    both, sentence, clip = rows("both", 16), rows("sentence", 10), rows("clip", 6)
    mean = (sentence @ sentence.T + clip @ clip.T) / 2
    torch.testing.assert_close(both @ both.T, mean, atol=0.1, rtol=0)


def test_clip_knows_its_own_names_and_foretells_the_others(clip_text):
    targets = make_targets(PHRASES, TargetSettings(kind="clip", width=6, whitening=0), encode, clip_text)
    assert targets.record["own_clip_rows"] == len(KNOWN)
    assert targets.record["ridge_penalty"] in PENALTIES
    assert targets.record["ridge_cosine"] > 0.3  # of names that were held out

    def agreement(names):
        above = torch.ones(len(names), len(names)).triu(1).bool()
        found, true = (rows @ rows.T for rows in (targets.of(names), encode(names, 20)))
        return np.corrcoef(found[above], true[above])[0, 1]

    assert agreement(KNOWN) > 0.8
    assert agreement([word for word in WORDS if word not in KNOWN]) > 0.4


def test_clip_needs_its_text_embeddings():
    with pytest.raises(ConfigError, match='kind "both" need text embeddings'):
        make_targets(PHRASES, TargetSettings(width=4), encode)


def test_too_few_phrases_for_the_width():
    with pytest.raises(ValueRangeError, match="vary along 5 axes, 12 are asked for"):
        make_targets(Phrases(ANIMALS), TargetSettings(kind="sentence", width=12), encode)


def test_rows_are_found_by_phrase():
    targets = make_targets(PHRASES, TargetSettings(kind="sentence", width=4), encode)
    assert torch.equal(targets.of(["Dog", "blue_fox"]), targets.rows[[1, PHRASES.all.index("blue fox")]])
    with pytest.raises(DataError, match='"okapi" has no target'):
        targets.of(["dog", "okapi"])


def test_targets_are_one_a_phrase():
    with pytest.raises(ShapeError, match=r"\(2, 3\) for 6 phrases"):
        Targets(Phrases(ANIMALS), torch.ones(2, 3))


def test_targets_survive_being_stored(tmp_path):
    targets = make_targets(PHRASES, TargetSettings(kind="sentence", width=4), encode)
    path = save_targets(targets, tmp_path / "kept" / "sentence.safetensors")
    found = load_targets(path)
    assert found.phrases == PHRASES
    assert found.record == targets.record
    assert torch.equal(found.rows, targets.rows)


@pytest.mark.parametrize("damage", ["no names", "no rows", "cut", "other names"])
def test_damaged_targets_are_named(tmp_path, damage):
    targets = make_targets(PHRASES, TargetSettings(kind="sentence", width=4), encode)
    path = save_targets(targets, tmp_path / "t.safetensors")
    names = tmp_path / "t.names.json"
    if damage == "no names":
        names.unlink()
    elif damage == "no rows":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:40])
    else:
        names.write_text(json.dumps({"class_names": ["cat"]}))
    with pytest.raises((DataError, ShapeError), match=r"cannot be read|for 1 phrases"):
        load_targets(path)


# CLIP's own text embeddings


SHIFT = 0.1 * torch.tensor([1.0, -1.0]).repeat(6)


@pytest.fixture
def stored(tmp_path):
    """Write two sets: "imagenet", shifted against "lvis" by a constant, with two names in common."""

    def make(names=None):
        sets = {
            "imagenet": ["Cat", "dog", "baluster / handrail", "wolf"],
            "lvis": ["cat", "dog", "bat_(animal)", "Sea_horse", "mouse (computer)"],
        }
        rows = {key: encode([name.lower() for name in part]) for key, part in sets.items()}
        rows["imagenet"] = rows["imagenet"] + SHIFT
        save_file({key: part.half() for key, part in rows.items()}, tmp_path / "embeddings.safetensors")
        (tmp_path / "names.json").write_text(json.dumps(names or sets))
        return tmp_path

    return make


def test_names_of_several_sets_become_one_and_the_sets_are_laid_over_each_other(stored):
    clip_text = read_clip_text(stored())
    assert clip_text.names == (
        "cat",
        "dog",
        "bat (animal)",
        "sea horse",
        "mouse (computer)",
        "baluster / handrail",
        "wolf",
    )
    torch.testing.assert_close(clip_text.rows.norm(dim=1), torch.ones(7))
    wolf = encode(["wolf"])
    assert (clip_text.rows[6] * wolf).sum() > 0.996 > (F.normalize(wolf + SHIFT, dim=-1) * wolf).sum() + 0.02
    torch.testing.assert_close(clip_text.rows[:2], encode(["cat", "dog"]), atol=0.02, rtol=0)


def test_names_that_must_not_be_learned_are_dropped_in_each_reading(stored):
    clip_text = read_clip_text(stored(), without=["Handrail", "sea-horse", "mouse", "animal farm"])
    assert clip_text.names == ("cat", "dog", "bat (animal)", "wolf")


def test_unreadable_clip_texts_are_named(stored, tmp_path):
    with pytest.raises(DataError, match=r"no .*names\.json"):
        read_clip_text(tmp_path)
    folder = stored({"imagenet": ["cat"]})
    with pytest.raises(DataError, match="does not fit embeddings"):
        read_clip_text(folder)
    with pytest.raises(DataError, match=r"no name of .* is left"):
        read_clip_text(stored(), without=["cat", "dog", "baluster", "wolf", "bat", "sea horse", "computer"])
    (folder / "embeddings.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(WeightsError, match="no safetensors file"):
        read_clip_text(folder)
