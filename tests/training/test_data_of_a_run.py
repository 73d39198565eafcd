"""Which samples a run trains on, in which order, and what it refuses or counts."""

from __future__ import annotations

import json
import math
import sys

import pytest
from PIL import Image

from ironclip.data.sources import open_dataset
from ironclip.errors import ConfigError, DataError, UnreadableSampleError, ValueRangeError
from ironclip.training.engine import Trainer
from made_up_shards import encoded, labelled, levels, write_shard


def result_of(out):
    return json.loads((out / "result.json").read_text())


# Order


def test_every_epoch_is_another_permutation_of_the_same_samples(trainer):
    one = trainer({"optimisation.steps": None, "optimisation.epochs": 2})
    assert (one.steps_per_epoch, one.steps) == (4, 8)
    batches = list(one.batches(strict=False))
    assert [epoch for epoch, _ in batches] == [0] * 4 + [1] * 4
    assert [len(samples) for _, samples in batches] == [8, 8, 8, 8] * 2
    first, second = ([s.key for e, samples in batches if e == epoch for s in samples] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == sorted(one.data.keys)
    assert first != second


def test_order_depends_on_the_keys_not_on_where_they_stand(trainer, data_root, tmp_path):
    toy = open_dataset(f"wds:{data_root}/toy?split=train")
    members = {}
    for position in reversed(range(len(toy))):
        stem = toy.keys[position].rpartition("/")[2]
        members[f"{stem}.png"] = encoded(int(stem), 16)
        members[f"{stem}.cls"] = str(toy.labels[position]).encode()
    write_shard(tmp_path / "toy" / "train-0000.tar", members)
    for name in ("classes.txt", "templates.json"):
        (tmp_path / "toy" / name).write_text((data_root / "toy" / name).read_text())

    def keys(one):
        return [sample.key for _, samples in one.batches(strict=False) for sample in samples]

    straight, reversed_shard = trainer(), trainer({"data.train": f"wds:{tmp_path}/toy?split=train"})
    assert straight.data.keys != reversed_shard.data.keys
    assert keys(straight) == keys(reversed_shard)
    assert keys(straight) != keys(trainer({"seed": 1}))


def test_batches_go_on_where_the_run_stands(trainer):
    changes = {"optimisation.steps": None, "optimisation.epochs": 2, "optimisation.batch_size": 6}
    whole = [(epoch, [s.key for s in samples]) for epoch, samples in trainer(changes).batches(strict=False)]
    assert len(whole) == 12  # 32 samples: five batches of 6 and one of 2, twice
    for step in (0, 1, 5, 6, 7, 11, 12):
        one = trainer(changes)
        one.progress.step = step
        assert [(epoch, [s.key for s in samples]) for epoch, samples in one.batches(strict=False)] == whole[step:]


# Data


def test_held_out_samples_are_never_trained_on(run, monkeypatch):
    trained, held_out, step = set(), set(), Trainer.step

    def spied(self, samples, epoch):
        trained.update(sample.key for sample in samples)
        held_out.update(self.held_out.keys)
        return step(self, samples, epoch)

    monkeypatch.setattr(Trainer, "step", spied)
    run({"optimisation.steps": None, "optimisation.epochs": 1})
    assert (len(trained), len(held_out)) == (32, 6)
    assert not trained & held_out


_OPENED: list[str] | None = None


def _note_opened(event, arguments):
    if _OPENED is not None and event == "open":
        _OPENED.append(str(arguments[0]))


sys.addaudithook(_note_opened)  # there is no way to take one back; it listens while _OPENED is a list


def test_test_data_are_never_read(run):
    global _OPENED
    _OPENED = []
    try:
        run({"select": "best"})
        opened = [path for path in _OPENED if "toy" in path]
    finally:
        _OPENED = None
    assert any("train-0000.tar" in path for path in opened)
    assert not [path for path in opened if "test" in path.rpartition("/")[2]]


def test_unreadable_samples_are_counted_and_named(run, log_of):
    out = run({"data.train": "wds:{data}/damaged?split=train", "data.hold_out": 0, "optimisation.batch_size": 4})
    found = result_of(out)
    assert sorted(found["unreadable"]) == ["damaged/train/000302", "damaged/train/000307"]
    assert all(found["unreadable"].values())
    # 10 positions in batches of 4, 4 and 2; the second epoch begins with the fourth step.
    assert [entry["epoch"] for entry in log_of(out)] == [0, 0, 0, 1]
    assert 8 + 2 <= found["images"] <= 8 + 4


def test_unreadable_samples_are_fatal_under_strict(run):
    with pytest.raises(UnreadableSampleError, match=r"sample damaged/train/00030[27] cannot be read"):
        run({"data.train": "wds:{data}/damaged?split=train", "data.hold_out": 0}, strict=True)


def test_unreadable_held_out_samples_are_counted_and_named(run):
    out = run({"data.train": "wds:{data}/damaged?split=train", "data.hold_out": 9, "optimisation.steps": 1})
    assert len(result_of(out)["unreadable"]) == 2


def test_a_batch_of_which_nothing_can_be_read_is_passed_over(run, log_of, tmp_path):
    members = labelled(0, 4, 2, 16)
    for name in members:
        if name.endswith(".png"):
            members[name] = b"no image"
    write_shard(tmp_path / "toy" / "train-0000.tar", members | labelled(4, 4, 2, 16))
    changes = {"data.class_names": ["a", "b"], "data.templates": ["a {}"], "data.hold_out": 0}
    out = run(changes | {"optimisation.batch_size": 1, "optimisation.steps": 8}, data_root=tmp_path)
    assert (result_of(out)["images"], result_of(out)["skipped_steps"], result_of(out)["steps"]) == (4, 4, 8)
    assert sum(math.isnan(entry["loss"]) for entry in log_of(out)) == 4


def test_limit_takes_samples_before_the_held_out_part(trainer):
    one = trainer({"data.limit": 20})
    assert (len(one.data), len(one.held_out.keys)) == (14, 6)
    both = trainer({"data.limit": 12})
    assert len(both.data) == 6
    assert {*both.data.keys, *both.held_out.keys} < {*one.data.keys, *one.held_out.keys}


def test_more_held_out_than_there_is(trainer):
    with pytest.raises(ValueRangeError, match="40 of 38 samples are to be held out"):
        trainer({"data.hold_out": 40})


def test_labels_are_missing(trainer):
    plain = {"data.train": "wds:{data}/plain?split=train", "data.templates": ["a {}"], "data.class_names": ["a", "b"]}
    for method in ("tecoa", "clean"):
        with pytest.raises(DataError, match=f'method "{method}" compares images with class prompts') as caught:
            trainer(plain | {"method": {"name": method}})
        assert "has no labels" in caught.value.problem
        assert "fare" in caught.value.remedy


def test_templates_are_missing(trainer, tmp_path):
    write_shard(tmp_path / "toy" / "train-0000.tar", labelled(0, 12, 2, 16))
    source = {"data.train": f"wds:{tmp_path}/toy"}
    with pytest.raises(DataError, match="has no class names"):
        trainer(source)
    with pytest.raises(DataError, match="has no templates"):
        trainer(source | {"data.class_names": ["a", "b"]})


def test_class_names_that_do_not_fit(trainer):
    with pytest.raises(DataError, match="2 class names for 3 labels: no name for label 2"):
        trainer({"data.class_names": ["cat", "dog"]})


def test_a_template_without_place(run):
    with pytest.raises(ConfigError, match=r'the template "a photo" has no \{\}'):
        run({"data.templates": ["a photo"]})


def test_missing_data(run):
    with pytest.raises(DataError, match=r"toys does not exist\. Did you mean .toy"):
        run({"data.train": "wds:{data}/toys"})


def test_only_classes_that_are_present(trainer, tmp_path):
    members = {name: content for name, content in labelled(0, 30, 3, 16).items()}
    members = {name: b"2" if content == b"1" else content for name, content in members.items()}
    write_shard(tmp_path / "toy" / "train-0000.tar", members)
    (tmp_path / "toy" / "classes.txt").write_text("cat\ndog\nbird")
    changes = {"data.train": f"wds:{tmp_path}/toy", "data.templates": ["a {}"]}
    assert list(trainer(changes).prompts[0]) == ["cat", "dog", "bird"]
    one = trainer(changes | {"data.classes": "present"})
    assert list(one.prompts[0]) == ["cat", "bird"]
    assert set(one.data.labels) == {0, 1}


def test_names_of_the_recipe_follow_the_classes_that_are_present(trainer, tmp_path):
    members = {name: content for name, content in labelled(0, 30, 3, 16).items()}
    members = {name: b"2" if content == b"1" else content for name, content in members.items()}
    write_shard(tmp_path / "toy" / "train-0000.tar", members)
    changes = {"data.train": f"wds:{tmp_path}/toy", "data.templates": ["a {}"], "data.classes": "present"}
    one = trainer(changes | {"data.class_names": ["cat", "dog", "bird"]})
    assert list(one.prompts[0]) == ["cat", "bird"]


def test_images_of_several_sizes_are_refused_in_words(trainer, tmp_path):
    for number in range(12):
        folder = tmp_path / "mixed" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(levels(number, 16 + number)).save(folder / f"{number}.png")
    with pytest.raises(DataError, match="size"):
        trainer({"data.train": f"folder:{tmp_path}/mixed", "data.templates": ["a {}"]})
