from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ironclip.data import Dataset, Sample, open_dataset
from ironclip.data.order import Subset, epoch_order, hold_out, keep_labels, limit, read_batches, shard
from ironclip.errors import DataError, UnreadableSampleError, ValueRangeError
from made_up_shards import labelled, write_shard

KEYS = [f"birds/train/{number:06d}" for number in range(500)]


class Birds:
    """A data set in memory; keys in `damaged` cannot be read."""

    source, class_names, templates, fingerprint = "test:birds", ["wren", "dove", "owl"], None, "0" * 64
    problems: tuple[str, ...] = ()

    def __init__(self, keys: list[str], damaged: set[str] | None = None) -> None:
        self.keys = keys
        self.labels: list[int] | None = [int(key[-6:]) % 3 for key in keys]
        self.damaged = damaged or set()
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, position: int) -> Sample:
        self.read.append(position)
        if self.keys[position] in self.damaged:
            raise UnreadableSampleError(self.keys[position], "made so")
        label = None if self.labels is None else self.labels[position]
        return Sample(self.keys[position], torch.full((3, 1, 1), position / 1000), label)


def keys_of(dataset: Dataset) -> set[str]:
    return set(dataset.keys)


def test_an_epoch_is_a_permutation_that_seed_and_epoch_change() -> None:
    orders = [epoch_order(KEYS, seed, epoch) for seed, epoch in [(0, 0), (0, 1), (1, 0), (10, 0), (1, 1)]]
    for order in orders:
        assert sorted(order) == list(range(500))
    assert len({tuple(order) for order in orders}) == 5
    assert epoch_order(KEYS, 0, 0) == orders[0]


def test_an_epoch_does_not_depend_on_the_canonical_order() -> None:
    shuffled = [KEYS[position] for position in np.random.default_rng(0).permutation(500)]
    expected = [KEYS[position] for position in epoch_order(KEYS, 7, 3)]
    assert [shuffled[position] for position in epoch_order(shuffled, 7, 3)] == expected
    fewer = KEYS[::2]  # and leaving samples out moves no other
    assert [fewer[position] for position in epoch_order(fewer, 7, 3)] == [key for key in expected if key in set(fewer)]


def test_an_epoch_looks_random() -> None:
    order = np.array(epoch_order(KEYS, 0, 0))
    assert abs(np.corrcoef(order, np.arange(500))[0, 1]) < 0.15
    assert 200 < (order[:250] < 250).sum() * 2 < 300


def test_the_order_of_one_epoch_is_fixed_for_ever() -> None:
    assert epoch_order(KEYS[:8], 0, 0) == [1, 7, 5, 3, 0, 2, 6, 4]
    assert limit(Birds(KEYS), 4).positions == [34, 205, 250, 476]


def test_limits_are_nested_and_canonical() -> None:
    small, large = limit(Birds(KEYS), 20), limit(Birds(KEYS), 100)
    assert (len(small), len(large)) == (20, 100)
    assert keys_of(small) < keys_of(large)
    assert list(small.keys) == sorted(small.keys)
    assert keys_of(limit(Birds(KEYS[::-1]), 20)) == keys_of(small)
    assert limit(Birds(KEYS), 1000).keys == KEYS


def test_held_out_samples_are_others_than_the_rest_and_the_limit() -> None:
    rest, held_out = hold_out(Birds(KEYS), 100)
    assert (len(rest), len(held_out)) == (400, 100)
    assert keys_of(rest) | keys_of(held_out) == set(KEYS)
    assert not keys_of(rest) & keys_of(held_out)
    shared = keys_of(held_out) & keys_of(limit(Birds(KEYS), 100))
    assert 5 < len(shared) < 40  # about 20: another hash, so a limit of the rest is a fair draw too


def test_shards_partition() -> None:
    parts = [shard(Birds(KEYS), i, 3) for i in range(3)]
    assert sorted(key for part in parts for key in part.keys) == KEYS
    assert all(120 < len(part) < 220 for part in parts)
    assert shard(Birds(KEYS), 0, 1).keys == KEYS
    assert len(shard(Birds(KEYS[:1]), 0, 2)) + len(shard(Birds(KEYS[:1]), 1, 2)) == 1


def test_keep_labels_with_and_without_new_labels() -> None:
    same = keep_labels(Birds(KEYS[:9]), [2, 0], relabel=False)
    assert same.labels == [0, 2, 0, 2, 0, 2]
    assert same.class_names == ["wren", "dove", "owl"]
    anew = keep_labels(Birds(KEYS[:9]), [2, 0], relabel=True)
    assert anew.keys == same.keys
    assert anew.labels == [1, 0, 1, 0, 1, 0]
    assert anew.class_names == ["owl", "wren"]
    assert [anew[position].label for position in range(6)] == anew.labels


def test_a_subset_of_a_subset_is_a_data_set() -> None:
    whole = Birds(KEYS)
    part: Dataset = limit(keep_labels(whole, [1, 2], relabel=True), 50)
    for position in range(50):
        sample = part[position]
        assert sample.key == part.keys[position]
        assert sample.label == int(sample.key[-6:]) % 3 - 1
        assert sample.pixels[0, 0, 0] == torch.tensor(int(sample.key[-6:]) / 1000)
    assert part.source == "test:birds"


def test_a_subset_has_a_fingerprint_of_its_own() -> None:
    whole = Birds(KEYS)
    others = [
        limit(whole, 10),
        limit(whole, 11),
        keep_labels(whole, [0], relabel=False),
        keep_labels(whole, [1], relabel=True),
        keep_labels(whole, [1], relabel=False),
    ]
    assert len({part.fingerprint for part in others} | {whole.fingerprint}) == 6
    assert limit(whole, 10).fingerprint == limit(whole, 10).fingerprint
    assert limit(whole, 500).fingerprint == whole.fingerprint


def test_losses_of_the_parent_are_carried_along(tmp_path: Path) -> None:
    shard_file = write_shard(tmp_path / "test-0.tar", labelled(0, 4))
    shard_file.write_bytes(shard_file.read_bytes()[:5000])
    assert "is damaged" in limit(open_dataset(f"wds:{tmp_path}"), 2).problems[0]
    assert limit(Birds(KEYS), 2).problems == ()


def test_bad_requests() -> None:
    whole, unlabelled = Birds(KEYS[:9]), Birds(KEYS[:9])
    unlabelled.labels = None
    with pytest.raises(ValueRangeError, match="limit is 0"):
        limit(whole, 0)
    for n in (0, 9, 10):
        with pytest.raises(ValueRangeError, match=f"{n} of 9 samples are to be held out, expected 1 to 8"):
            hold_out(whole, n)
    for i, n in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueRangeError, match=f"shard {i}/{n}"):
            shard(whole, i, n)
    with pytest.raises(DataError, match=r"no sample of label 3(.|\n)*from 0 to 2"):
        keep_labels(whole, [0, 3], relabel=False)
    with pytest.raises(DataError, match="given twice"):
        keep_labels(whole, [0, 0], relabel=True)
    with pytest.raises(DataError, match="has no labels"):
        keep_labels(unlabelled, [0], relabel=True)
    with pytest.raises(ValueRangeError, match="batch_size is 0"):
        read_batches(whole, [0], 0, strict=False, unreadable={})
    assert limit(unlabelled, 3)[0].label is None


@pytest.mark.parametrize("batch_size", [1, 4, 7, 64])
def test_batches_keep_the_order(batch_size: int) -> None:
    positions = epoch_order(KEYS, 0, 0)[:50]
    batches = list(read_batches(Birds(KEYS), positions, batch_size, strict=True, unreadable={}))
    assert [sample.key for batch in batches for sample in batch] == [KEYS[position] for position in positions]
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}
    assert len(batches) == -(-50 // batch_size)


def test_unreadable_samples_are_named_and_move_no_other() -> None:
    damaged = {KEYS[1], KEYS[4], KEYS[5], KEYS[9]}
    unreadable: dict[str, str] = {}
    batches = list(read_batches(Birds(KEYS, damaged), range(10), 2, strict=False, unreadable=unreadable))
    assert [[int(sample.key[-6:]) for sample in batch] for batch in batches] == [[0], [2, 3], [], [6, 7], [8]]
    assert unreadable == dict.fromkeys(sorted(damaged), "made so")


def test_unreadable_samples_are_counted_when_their_batch_is_handed_out() -> None:
    unreadable: dict[str, str] = {}
    batches = read_batches(Birds(KEYS, {KEYS[1], KEYS[3]}), range(6), 2, strict=False, unreadable=unreadable)
    next(batches)
    time.sleep(0.05)  # the decoder is ahead by now
    assert list(unreadable) == [KEYS[1]]
    next(batches)
    assert list(unreadable) == [KEYS[1], KEYS[3]]


def test_strict_raises_where_the_sample_stands() -> None:
    batches = read_batches(Birds(KEYS, {KEYS[5]}), range(20), 2, strict=True, unreadable={})
    assert len(next(batches)) == 2
    assert len(next(batches)) == 2
    with pytest.raises(UnreadableSampleError, match=KEYS[5]):
        next(batches)


def test_reading_stops_when_the_reader_does() -> None:
    dataset = Birds(KEYS)
    threads = threading.active_count()
    batches = read_batches(dataset, range(500), 2, strict=False, unreadable={})
    next(batches)
    batches.close()
    assert len(dataset.read) <= 8  # what was decoded ahead, not all
    assert threading.active_count() == threads


def test_no_positions_give_no_batches() -> None:
    assert list(read_batches(Birds(KEYS), [], 4, strict=True, unreadable={})) == []


def test_decoding_runs_beside_the_work() -> None:
    ahead = threading.Event()

    class Watched(Birds):
        def __getitem__(self, position: int) -> Sample:
            if position == 2:
                ahead.set()
            return super().__getitem__(position)

    batches = read_batches(Watched(KEYS), range(20), 1, strict=True, unreadable={})
    assert next(batches)[0].key == KEYS[0]
    assert ahead.wait(timeout=10)  # the third batch is decoded while we hold the first
    assert [batch[0].key for batch in batches] == KEYS[1:20]


def test_subset_takes_other_words() -> None:
    words = Subset(Birds(KEYS), [3], class_names=["a", "b", "c"], templates=["a {}"])
    assert words.class_names == ["a", "b", "c"]
    assert words.templates == ["a {}"]
