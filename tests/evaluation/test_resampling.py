from __future__ import annotations

import numpy as np
import pytest

from ironclip.errors import ShapeError, ValueRangeError
from ironclip.evaluation.intervals import paired_difference, wilson
from ironclip.evaluation.resampling import mean_interval, paired_interval, score_interval


def test_the_interval_is_about_as_wide_as_the_normal_one():
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = mean_interval(values)
    error = values.std() / np.sqrt(400)
    assert found.estimate == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_copies_of_a_value_add_nothing_where_they_are_one_cluster():
    values = np.random.default_rng(1).normal(0, 1, 60)
    alone, five = mean_interval(values), mean_interval(np.repeat(values, 5), np.repeat(np.arange(60), 5).tolist())
    for end in ("estimate", "low", "high"):
        assert getattr(five, end) == pytest.approx(getattr(alone, end), abs=1e-12)
    taken_for_many = mean_interval(np.repeat(values, 5))
    assert (taken_for_many.high - taken_for_many.low) < 0.6 * (alone.high - alone.low)


def test_it_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(2)
    hits = 0
    for _ in range(200):
        found = mean_interval(random.exponential(1.0, 80), draws=500)
        hits += found.low <= 1.0 <= found.high
    assert 0.87 <= hits / 200 <= 0.99


def test_truth_values_have_exact_intervals():
    assert score_interval([1.0, 0.0, 1.0, 1.0]) == wilson(3, 4)
    assert score_interval([0.0] * 10).high > 0.2
    before, after = [1.0, 1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0, 0.0]
    found, expected = paired_interval(before, after), paired_difference(1, 1, 2, 1)
    assert (found.estimate, found.low, found.high) == (expected.difference, expected.low, expected.high)
    assert found.estimate == pytest.approx(-0.2)
    halves = [0.5, 1.0, 0.0, 0.25, 1.0]
    assert paired_interval(before, halves) == mean_interval([b - a for a, b in zip(before, halves, strict=True)])
    with pytest.raises(ShapeError, match="5 scores against 4"):
        paired_interval(before, after[:4])


def test_what_has_no_mean_is_refused():
    with pytest.raises(ValueRangeError, match="a mean of 0 values"):
        mean_interval([])
    with pytest.raises(ValueRangeError, match="NaN"):
        mean_interval([1.0, float("nan")])
    with pytest.raises(ShapeError, match="Give one cluster a value"):
        mean_interval([1.0, 2.0], ["a"])
