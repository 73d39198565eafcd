"""Corruption error relative to a baseline, and the harmonic mean, by hand."""

from __future__ import annotations

import pytest

from ironclip.errors import ConfigError, ValueRangeError
from ironclip.evaluation.shift import harmonic_mean, mean_corruption_error

BASELINE = {"fog": [0.2, 0.4], "snow": [0.5, 0.5]}


def test_errors_are_summed_over_severities_before_they_are_divided():
    # (0.1 + 0.5) / 0.6 and 0.25 / 1.0: ratios severity by severity would give another number.
    assert mean_corruption_error({"fog": [0.1, 0.5], "snow": [0.25, 0.0]}, BASELINE) == pytest.approx((1 + 0.25) / 2)
    assert mean_corruption_error(BASELINE, BASELINE) == pytest.approx(1)
    # The order of corruptions does not matter.
    swapped = {"snow": BASELINE["snow"], "fog": [0.1, 0.2]}
    assert mean_corruption_error(swapped, BASELINE) == pytest.approx((1 + 0.5) / 2)


@pytest.mark.parametrize(
    ("errors", "baseline", "kind", "words"),
    [
        ({}, {}, ConfigError, "errors under no corruption"),
        ({"fog": [0.1]}, {"snow": [0.1]}, ConfigError, r"fog \(1\) and those of the baseline under snow \(1\)"),
        ({"fog": [0.1]}, {"fog": [0.1, 0.2]}, ConfigError, r"fog \(1\).*fog \(2\)"),
        ({"fog": [10.0]}, {"fog": [0.1]}, ValueRangeError, r"error under fog is \[10.0\]"),
        ({"fog": [float("nan")]}, {"fog": [0.1]}, ValueRangeError, "error under fog"),
        ({"fog": [0.1]}, {"fog": [-0.1]}, ValueRangeError, "error of the baseline under fog"),
        ({"fog": [0.1]}, {"fog": [0.0]}, ValueRangeError, "the baseline makes no error under fog"),
    ],
)
def test_what_has_no_relative_error(errors, baseline, kind, words):
    with pytest.raises(kind, match=words):
        mean_corruption_error(errors, baseline)


def test_the_harmonic_mean_is_near_the_smaller():
    assert harmonic_mean(0.5, 0.5) == pytest.approx(0.5)
    assert harmonic_mean(0.9, 0.3) == pytest.approx(0.45)
    assert harmonic_mean(0.0, 0.9) == harmonic_mean(0.0, 0.0) == 0
    with pytest.raises(ValueRangeError, match=r"accuracies of 45\.0 and 0\.3"):
        harmonic_mean(45.0, 0.3)
