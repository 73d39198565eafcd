from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from ironclip.errors import ShapeError, ValueRangeError
from ironclip.evaluation.intervals import (
    Interval,
    count_per_class,
    holm,
    mean_per_class_interval,
    paired_difference,
    wilson,
)


@pytest.mark.parametrize("n", [1, 2, 7, 64, 1000])
def test_wilson_equals_scipy(n):
    for successes in {0, 1, n // 3, n // 2, n - 1, n}:
        theirs = binomtest(successes, n).proportion_ci(confidence_level=0.95, method="wilson")
        ours = wilson(successes, n)
        assert ours.estimate == successes / n
        assert [ours.low, ours.high] == pytest.approx([theirs.low, theirs.high], abs=1e-12)


def test_wilson_worked_examples():
    assert wilson(459, 1000) == Interval(0.459, pytest.approx(0.4283, abs=5e-5), pytest.approx(0.4900, abs=5e-5))
    assert wilson(0, 1000) == Interval(0.0, 0.0, pytest.approx(0.00383, abs=5e-6))
    assert wilson(459, 1000).low < wilson(431, 1000).high  # two models on one set of 1000 images overlap
    thirteen_sets = wilson(13 * 459, 13 * 1000)
    assert (thirteen_sets.high - thirteen_sets.low) / 2 == pytest.approx(0.0085, abs=1e-4)


def test_wilson_is_symmetric_and_holds_its_estimate():
    for n, successes in itertools.product([1, 3, 50], range(0, 51, 7)):
        if successes <= n:
            right, wrong = wilson(successes, n), wilson(n - successes, n)
            assert [right.low, right.high] == pytest.approx([1 - wrong.high, 1 - wrong.low], abs=1e-12)
            assert 0 <= right.low <= right.estimate <= right.high <= 1


def test_wilson_covers_the_truth_about_as_often_as_promised():
    n, truth = 100, np.linspace(0.05, 0.95, 37)
    limits = [wilson(successes, n) for successes in range(n + 1)]
    holds = np.array([[one.low <= p <= one.high for p in truth] for one in limits])
    coverage = (binom.pmf(np.arange(n + 1)[:, None], n, truth) * holds).sum(axis=0)
    assert coverage.mean() == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize(("successes", "n", "words"), [(0, 0, "0 samples"), (5, 4, "5 successes in 4"), (-1, 4, "-1")])
def test_wilson_refuses(successes, n, words):
    with pytest.raises(ValueRangeError, match=words):
        wilson(successes, n)


def test_paired_difference_worked_example():
    found = paired_difference(both=410, only_a=49, only_b=26, neither=515)
    assert found.difference == pytest.approx(0.023)
    assert [found.low, found.high] == pytest.approx([0.0060, 0.0400], abs=5e-5)
    assert found.p_value == pytest.approx(0.0106, abs=5e-5)
    # Significant although the unpaired intervals overlap.
    assert found.low > 0
    assert wilson(459, 1000).low < wilson(436, 1000).high


def test_paired_difference_equals_the_published_table():
    found = paired_difference(36, 12, 2, 0)  # Newcombe 1998, table II, method 10
    assert [found.low, found.high] == pytest.approx([0.0569, 0.3404], abs=5e-5)


def test_paired_difference_equals_the_definition_in_exact_arithmetic():
    mpmath = pytest.importorskip("mpmath")
    z = mpmath.sqrt(2) * mpmath.erfinv(mpmath.mpf("0.95"))

    def limits(successes, n):
        p = mpmath.mpf(successes) / n
        root = z * mpmath.sqrt(z**2 + 4 * n * p * (1 - p))
        return (2 * n * p + z**2 - root) / (2 * (n + z**2)), (2 * n * p + z**2 + root) / (2 * (n + z**2))

    for a, b, c, d in [(30, 5, 2, 63), (1, 40, 30, 2), (12, 0, 5, 3), (20, 3, 3, 4), (2, 1, 1, 2)]:
        n = a + b + c + d
        p1, p2 = mpmath.mpf(a + b) / n, mpmath.mpf(a + c) / n
        (l1, u1), (l2, u2) = limits(a + b, n), limits(a + c, n)
        excess = a * d - b * c
        corrected = max(excess - mpmath.mpf(n) / 2, 0) if excess > 0 else excess
        phi = corrected / mpmath.sqrt((a + b) * (c + d) * (a + c) * (b + d))
        delta = mpmath.sqrt((p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2)
        epsilon = mpmath.sqrt((u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2)
        found = paired_difference(a, b, c, d)
        expected = [float(p1 - p2 - delta), float(p1 - p2 + epsilon)]
        assert [found.low, found.high] == pytest.approx(expected, abs=1e-12)


def test_mcnemar_by_hand():
    assert paired_difference(0, 5, 0, 5).p_value == pytest.approx(2 * 0.5**5)
    assert paired_difference(0, 4, 1, 5).p_value == pytest.approx(2 * (1 + 5) * 0.5**5)
    assert paired_difference(3, 0, 0, 7).p_value == 1.0
    assert paired_difference(3, 4, 4, 7).p_value == 1.0


def test_paired_difference_turns_round():
    there, back = paired_difference(10, 7, 3, 20), paired_difference(10, 3, 7, 20)
    assert [there.difference, there.low, there.high] == pytest.approx([-back.difference, -back.high, -back.low])
    assert there.p_value == back.p_value


def test_paired_difference_with_an_empty_margin():
    found = paired_difference(both=0, only_a=0, only_b=6, neither=4)  # A is never right: phi is 0
    a, b = wilson(0, 10), wilson(6, 10)
    assert found.low == pytest.approx(-0.6 - (b.high - b.estimate))
    assert found.high == pytest.approx(-0.6 + np.hypot(a.high, b.estimate - b.low))


@pytest.mark.parametrize(("counts", "words"), [((0, 0, 0, 0), "0 samples"), ((1, -2, 0, 0), "only_a = -2")])
def test_paired_difference_refuses(counts, words):
    with pytest.raises(ValueRangeError, match=words):
        paired_difference(*counts)


def test_mean_per_class_interval_equals_drawing_the_samples_one_by_one():
    generator = np.random.default_rng(3)
    labels = np.repeat([0, 1, 2], [40, 15, 6])
    correct = generator.random(61) < np.array([0.9, 0.5, 0.3])[labels]
    means = []
    for _ in range(4000):
        shares = []
        for label in range(3):
            members = correct[labels == label]
            shares.append(generator.choice(members, len(members) - 1).mean())
        means.append(np.mean(shares))
    found = mean_per_class_interval(correct, labels)
    assert found.estimate == pytest.approx(np.mean([correct[labels == label].mean() for label in range(3)]))
    assert [found.low, found.high] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.02)


def test_mean_per_class_interval_has_the_unbiased_spread_in_small_classes():
    labels = np.repeat(np.arange(300), 3)
    correct = np.tile([True, False, False], 300)
    found = mean_per_class_interval(correct, labels)
    variance_of_a_class = (1 / 3) * (2 / 3) * 3 / 2 / 3  # sample variance over n - 1, of a mean of three
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * np.sqrt(variance_of_a_class / 300), rel=0.05)


def test_mean_per_class_interval_is_repeatable_and_skips_absent_classes():
    labels, correct = [7, 7, 7, 2, 2, 2], [1, 1, 0, 0, 0, 1]
    assert mean_per_class_interval(correct, labels) == mean_per_class_interval(correct, labels)
    right, sizes = count_per_class(correct, labels)
    assert right.tolist() == [1, 2]
    assert sizes.tolist() == [3, 3]


@pytest.mark.parametrize("verdict", [False, True])
def test_mean_per_class_interval_of_samples_all_alike_has_a_width(verdict):
    found = mean_per_class_interval([verdict] * 20, [0, 1] * 10)
    assert found == wilson(20 * verdict, 20)
    assert found.high - found.low > 0.1


def test_mean_per_class_interval_refuses():
    with pytest.raises(ValueRangeError, match="0 samples"):
        mean_per_class_interval([], [])
    with pytest.raises(ShapeError, match=r"\(2,\).*\(3,\)"):
        mean_per_class_interval([True, False], [0, 1, 2])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(ValueRangeError, match="outside"):
        holm([0.5, 1.5])
