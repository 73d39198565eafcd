from __future__ import annotations

from types import SimpleNamespace

import pytest

from ironclip.data.order import few_shot
from ironclip.errors import DataError


class Made(SimpleNamespace):
    def __len__(self):
        return len(self.keys)


def made(labels, order=None):
    rows = list(range(len(labels))) if order is None else order
    return Made(
        source="made up",
        fingerprint="f",
        problems=(),
        templates=None,
        class_names=None,
        keys=[f"key {row}" for row in rows],
        labels=None if labels[0] is None else [labels[row] for row in rows],
    )


LABELS = [row % 3 for row in range(60)] + [3]


def test_each_class_has_its_shots_or_all_that_it_has():
    found = few_shot(made(LABELS), 4, seed=0)
    assert {label: found.labels.count(label) for label in range(4)} == {0: 4, 1: 4, 2: 4, 3: 1}


def test_it_is_nested_and_a_function_of_seed_and_keys():
    few, more = (set(few_shot(made(LABELS), shots, seed=0).keys) for shots in (1, 16))
    assert few < more
    assert set(few_shot(made(LABELS, order=list(reversed(range(61)))), 1, seed=0).keys) == few
    assert set(few_shot(made(LABELS), 1, seed=1).keys) != few


def test_without_labels_there_are_no_shots():
    with pytest.raises(DataError, match="made up has no labels to take 4 shots a class by") as caught:
        few_shot(made([None] * 4), 4, seed=0)
    assert "data.shots" in caught.value.remedy
