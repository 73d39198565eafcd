"""What is trained on: every image once an epoch, never a class that must not be met."""

from __future__ import annotations

import pytest
import torch

from ironclip.errors import ConfigError, DataError
from ironclip.pretraining.corpus import read_corpus
from made_up_shards import levels


def test_images_and_words_come_as_they_are(section, read):
    corpus = read(section(toy={"hold_out": 0, "synonyms": "{data}/toy"}))
    toy, said = corpus.parts
    assert len(toy) == 40
    assert toy.words == [["cat", "small cat"], ["dog", "small dog"], ["bird", "small bird"], ["wolf", "small wolf"]]
    assert toy.templates == ["a photo of a {}.", "a {}"]
    for row, key in enumerate(toy.keys):
        number = int(key.rpartition("/")[2])
        assert torch.equal(toy.pixels[row], torch.from_numpy(levels(number, 32)).permute(2, 0, 1))
        assert int(toy.labels[row]) == number % 4
    assert said.labels is None
    assert said.captions[3] == ("number 3 on a table", "a picture with a 3")


def test_held_out_images_are_trained_on_by_nobody(section, read):
    corpus = read(section())
    (held,) = corpus.held_out
    assert len(held) == 8
    assert len(corpus.parts[0]) == 32
    assert not set(held.keys) & set(corpus.parts[0].keys)


def test_held_out_classes_are_met_only_where_recipes_are_compared(section, read):
    corpus = read(section(toy={"held_out_classes": 2, "hold_out": 0}))
    (unmet,) = corpus.unmet
    toy = corpus.parts[0]
    assert len(unmet) == len(toy) == 20
    assert sorted(word for own in (*unmet.words, *toy.words) for word in own) == ["bird", "cat", "dog", "wolf"]
    assert set(unmet.labels.tolist()) == set(toy.labels.tolist()) == {0, 1}
    for part in (unmet, toy):
        for row, key in enumerate(part.keys):
            name = ("cat", "dog", "bird", "wolf")[int(key.rpartition("/")[2]) % 4]
            assert part.words[int(part.labels[row])] == [name]


def test_every_image_comes_once_an_epoch_in_another_order(section, read):
    part = read(section(toy={"hold_out": 0, "per_batch": 7})).parts[0]
    seen: dict[int, list[int]] = {}
    for step in range(40):  # 280 places: seven epochs
        rows, epochs = part.rows(3, step)
        assert len(rows) == 7
        for row, epoch in zip(rows.tolist(), epochs, strict=True):
            seen.setdefault(epoch, []).append(row)
    assert [sorted(rows) for rows in seen.values()] == [list(range(40))] * 7
    assert seen[0] != seen[1]
    assert torch.equal(part.rows(3, 11)[0], part.rows(3, 11)[0])
    assert not torch.equal(part.rows(4, 11)[0], part.rows(3, 11)[0])


@pytest.mark.parametrize("name", ["wolf", "Wolf", "small-wolf"])
def test_a_class_that_must_never_be_met_is_refused(name, section, read):
    settings = section(toy={"synonyms": "{data}/toy"})
    with pytest.raises(DataError, match=r'source "toy" shows "(small )?wolf", a class that pre-training must never'):
        read(settings, {"elsewhere": {7: [name]}})


def test_images_of_another_size_are_refused(section, data_root):
    settings = section()
    with pytest.raises(DataError, match=r'is 32x32, expected 16x16(.|\n)*resize=16 to source "toy"'):
        read_corpus(settings.sources, data_root=str(data_root), resolution=16, unseen={}, seed=0)


def test_a_batch_cannot_take_more_than_there_is(section, read):
    with pytest.raises(ConfigError, match=r'source "toy" has 32 images, fewer than the 33'):
        read(section(toy={"per_batch": 33}))


def test_captions_must_be_there(section, read):
    with pytest.raises(DataError, match=r'source "toy" has images without captions'):
        read(section(toy={"captions": True, "mix": 0.0, "hold_out": 0}))
