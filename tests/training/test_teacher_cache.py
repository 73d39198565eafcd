"""The teacher cache: the same run with and without it, and every way in which it must not be used."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch

from ironclip.errors import ConfigError
from ironclip.methods.base import Batch
from ironclip.training import teacher_cache
from ironclip.training.setup import prepare
from ironclip.training.teacher_cache import open_teacher_cache
from ironclip.training.trainer import Trainer

# 38 samples less 6 that are held out: two batches of 16, twice over.
TWO_EPOCHS = {"optimisation.batch_size": 16, "optimisation.steps": 4, "method": {"name": "fare"}}


@pytest.fixture
def prepared(recipe, data_root, tmp_path):
    """Prepare the trainer of a recipe with a cache in `cache`."""

    def make(changes=None, **options) -> Trainer:
        options = {"data_root": str(data_root), "strict": False, "teacher_cache": tmp_path / "cache"} | options
        return prepare(recipe(TWO_EPOCHS | (changes or {})), device="cpu", **options)

    return make


@pytest.fixture
def passes(monkeypatch):
    """Count the images of the passes through the teacher of a trainer."""

    def watch(trainer):
        counted = []
        embed = trainer.teacher.model.embed_image

        def counting(pixels):
            counted.append(len(pixels))
            return embed(pixels)

        monkeypatch.setattr(trainer.teacher.model, "embed_image", counting)
        return counted

    return watch


def files(folder):
    return sorted((folder / "cache").glob("*/*.npy"))


def batch_of(trainer):
    _, samples = next(trainer.batches(strict=False))
    return trainer._batch(samples)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("method", ["fare", "agft"])
def test_a_run_is_the_same_bit_for_bit(run, tmp_path, log_of, precision, method):
    changes = TWO_EPOCHS | {"method": {"name": method}, "optimisation.precision": precision}
    live = run(changes, out="live")
    cached = run(changes, out="cached", teacher_cache=tmp_path / "cache")
    again = run(changes, out="again", teacher_cache=tmp_path / "cache")
    for other in (cached, again):
        assert log_of(other) == log_of(live)
        weights = "model/open_clip_model.safetensors"
        assert (other / weights).read_bytes() == (live / weights).read_bytes()


def test_the_teacher_sees_no_clean_image_again(prepared, passes):
    trainer = prepared()
    counted = passes(trainer)
    for epoch, samples in trainer.batches(strict=False):
        trainer.step(samples, epoch)
    assert trainer.progress.step == 4
    assert counted == []


def test_rows_are_those_of_a_live_pass(prepared):
    trainer = prepared()
    batch = batch_of(trainer)
    known = trainer.teacher.known(batch)
    assert torch.equal(known, trainer.teacher.model.embed_image(batch.pixels))
    turned = torch.arange(15, -1, -1)
    other = Batch(keys=[batch.keys[row] for row in turned], pixels=batch.pixels[turned])
    assert torch.equal(trainer.teacher.known(other), known[turned])


def test_the_model_s_input_is_what_a_batch_holds_there(prepared):
    trainer = prepared({"threat.acting": "model_input"})
    batch = batch_of(trainer)
    assert batch.pixels.shape[-1] == 32
    assert torch.equal(trainer.teacher.known(batch), trainer.teacher.model.embed_image(batch.pixels))


def test_adversarial_images_are_passed_live(prepared, passes):
    """Under the key of a clean image, that is; the trainer does not ask for them at all."""
    trainer = prepared()
    batch = batch_of(trainer)
    assert trainer.teacher.known(batch) is not None
    attacked = Batch(keys=batch.keys, pixels=(batch.pixels + 1 / 255).clamp(0, 1))
    assert trainer.teacher.known(attacked) is None


def test_augmented_images_switch_it_off(prepared, caplog):
    trainer = prepared()
    batch = batch_of(trainer)
    flipped = Batch(keys=batch.keys, pixels=batch.pixels.flip(-1))
    with caplog.at_level(logging.WARNING, "ironclip"):
        assert trainer.teacher.known(flipped) is None
        assert trainer.teacher.known(batch) is None
    assert caplog.messages == ["the images are not those that the teacher cache was made of: it is off."]
    assert torch.equal(trainer.teacher.embedding(flipped), trainer.teacher.model.embed_image(flipped.pixels))


def test_one_image_that_differs_is_enough(prepared):
    trainer = prepared()
    batch = batch_of(trainer)
    pixels = batch.pixels.clone()
    pixels[7, 1, 3, 3] += 1e-6
    assert trainer.teacher.known(Batch(keys=batch.keys, pixels=pixels)) is None


def test_held_out_images_are_passed_live_and_leave_it_on(prepared):
    trainer = prepared()
    held_out = Batch(keys=trainer.held_out.keys, pixels=trainer.held_out.pixels)
    assert trainer.teacher.known(held_out) is None
    assert trainer.teacher.known(batch_of(trainer)) is not None


@pytest.mark.parametrize("place", [0.02, 0.5, 0.999])
def test_a_damaged_byte_is_noticed_and_computed_anew(prepared, tmp_path, caplog, place):
    known = prepared().teacher.known(batch_of(prepared()))
    (path,) = files(tmp_path)
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[int(place * len(damaged))] ^= 1
    path.write_bytes(damaged)
    with caplog.at_level(logging.WARNING, "ironclip"):
        trainer = prepared()
    assert f"{path} is damaged: it is computed anew." in caplog.text
    assert torch.equal(trainer.teacher.known(batch_of(trainer)), known)
    assert path.read_bytes() == content


def test_only_what_is_damaged_is_computed(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_cache, "CHUNK", 10)
    known = prepared().teacher.known(batch_of(prepared()))
    paths = files(tmp_path)
    assert [path.name.partition("-")[2][:6] for path in paths] == ["000000", "000001", "000002", "000003"]
    before = [path.stat().st_mtime_ns for path in paths]
    paths[2].write_bytes(paths[2].read_bytes()[:-1])
    trainer = prepared()
    assert files(tmp_path) == paths
    changed = [path.stat().st_mtime_ns != then for path, then in zip(paths, before, strict=True)]
    assert changed == [False, False, True, False]
    assert torch.equal(trainer.teacher.known(batch_of(trainer)), known)
    assert isinstance(trainer.teacher.known._chunks[0], np.memmap)


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"optimisation.precision": "bf16"}, "precision"),
        ({"data.limit": 30}, "data"),
        ({"threat.acting": "model_input"}, "acting"),
    ],
)
def test_another_run_has_a_cache_of_its_own(prepared, tmp_path, changes, differs):
    prepared()
    prepared(changes)
    first, second = (json.loads(path.read_text()) for path in sorted((tmp_path / "cache").glob("*/of.json")))
    assert [key for key in first if first[key] != second[key]] == [differs]


def test_other_weights_and_other_preprocessing_have_one_too(prepared, tiny_clip, tmp_path):
    data = prepared(teacher_cache=None).data
    options = {"acting": lambda pixels: pixels, "acting_at": "native", "precision": torch.float32, "strict": True}
    other = tiny_clip()
    other.spec = type(other.spec)("x", other.spec.architecture, other.spec.sha256, other.spec.preprocessing)
    for model in (tiny_clip(), tiny_clip(seed=1), tiny_clip(fast=False), other):
        open_teacher_cache(tmp_path / "of", model, data, **options)
    assert len(list((tmp_path / "of").iterdir())) == 3  # what the model is called makes no other


def test_the_same_cache_for_another_seed_and_learning_rate(prepared, tmp_path):
    prepared()
    prepared({"seed": 5, "optimisation.lr": 0.1})
    assert len(files(tmp_path)) == 1


def test_unreadable_samples_have_no_row(prepared, tmp_path):
    trainer = prepared({"data.train": "wds:{data}/damaged?split=train", "data.hold_out": 2})
    records = np.load(files(tmp_path)[0])
    empty = [record["pixels"].tobytes() == bytes(16) for record in records]
    unreadable = [not key.endswith(tuple("01345689")) for key in trainer.data.keys]
    assert empty == unreadable
    assert any(empty)
    # Should such a sample come after all, it is passed live, and the rest stays known.
    missing = trainer.data.keys[empty.index(True)]
    assert trainer.teacher.known(Batch(keys=[missing], pixels=torch.zeros(1, 3, 16, 16))) is None
    assert trainer.teacher.known(batch_of(trainer)) is not None


@pytest.mark.parametrize("method", ["tecoa", "clean"])
def test_a_method_that_would_not_read_it_is_told(prepared, method):
    with pytest.raises(ConfigError, match=f'method "{method}" would not read a teacher cache'):
        prepared({"method": {"name": method}})
