from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from ironclip.errors import ShapeError, ValueRangeError
from ironclip.evaluation.metrics import (
    attack_success_rate,
    clean_accuracy,
    clean_correct,
    mean_per_class,
    robust_accuracy,
    robust_correct,
)

# Six samples, by hand: 0 stays right, 1 falls, 2 wrong before (and marked broken), 3 wrong before, 4 falls, 5 stays.
LABELS = np.array([0, 0, 0, 1, 1, 1])
PRED = np.array([0, 0, 1, 0, 1, 1])
BROKEN = np.array([False, True, True, False, True, False])


def test_by_hand():
    assert clean_correct(LABELS, PRED).tolist() == [True, True, False, False, True, True]
    assert robust_correct(LABELS, PRED, BROKEN).tolist() == [True, False, False, False, False, True]
    assert clean_accuracy(LABELS, PRED) == pytest.approx(4 / 6)
    assert robust_accuracy(LABELS, PRED, BROKEN) == pytest.approx(2 / 6)  # of all samples
    assert attack_success_rate(LABELS, PRED, BROKEN) == pytest.approx(2 / 4)  # of those right before


def test_equal_to_scikit_learn():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 7, 300)
    pred = np.where(generator.random(300) < 0.4, generator.integers(0, 7, 300), labels)
    assert clean_accuracy(labels, pred) == pytest.approx(accuracy_score(labels, pred))
    assert mean_per_class(labels == pred, labels) == pytest.approx(balanced_accuracy_score(labels, pred))


def test_a_sample_wrong_before_is_never_robust_whatever_its_flag():
    unmarked = BROKEN.copy()
    unmarked[2] = False
    assert robust_accuracy(LABELS, PRED, unmarked) == robust_accuracy(LABELS, PRED, BROKEN)
    assert attack_success_rate(LABELS, PRED, unmarked) == attack_success_rate(LABELS, PRED, BROKEN)


def test_mean_per_class_weighs_classes_alike():
    assert mean_per_class([True] * 9 + [False], [0] * 9 + [5]) == pytest.approx(0.5)


def test_undefined_success_rate_is_refused_in_words():
    with pytest.raises(ValueRangeError, match="none of the 2 samples is right before the attack"):
        attack_success_rate([0, 1], [1, 0], [True, True])


def test_empty_nan_and_misfit_are_refused_in_words():
    with pytest.raises(ValueRangeError, match="labels holds no samples"):
        clean_accuracy([], [])
    with pytest.raises(ValueRangeError, match="pred_clean is NaN for 1 of 2 samples: these are not scored"):
        clean_accuracy([0, 1], [0.0, np.nan])
    with pytest.raises(ShapeError, match=r"labels \(2,\), pred_clean \(3,\)"):
        clean_accuracy([0, 1], [0, 1, 2])
    with pytest.raises(ValueRangeError, match="object values, expected numbers"):
        robust_accuracy([0, 1], [0, 1], [True, None])
