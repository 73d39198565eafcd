"""A method beats another only beyond both kinds of chance: that of the seeds and that of the images."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ironclip.errors import ShapeError, ValueRangeError
from ironclip.evaluation.comparison import LEVEL, contest, contests
from ironclip.evaluation.intervals import holm


def runs(accuracies, images=1000, seed=0):
    """Draw verdicts `[S, N]` of runs whose accuracies are given; images are as hard for every run."""
    hardness = np.random.default_rng(seed).random(images)
    return np.stack([hardness < accuracy for accuracy in accuracies])


def test_with_seeds_alone_it_is_welchs_test():
    """All images of a run alike in number, very many of them: only the seeds are left."""
    ours, theirs = (0.62, 0.60, 0.65), (0.55, 0.58, 0.50, 0.51)
    a, b = (np.arange(200_000) < 200_000 * np.array(shares)[:, None] for shares in (ours, theirs))
    found = contest("a", a, "b", b)
    welch = stats.ttest_ind(ours, theirs, equal_var=False)
    assert found.difference == pytest.approx(np.mean(ours) - np.mean(theirs), abs=1e-5)
    assert found.seed_error == pytest.approx(np.sqrt(np.var(ours, ddof=1) / 3 + np.var(theirs, ddof=1) / 4), rel=1e-4)
    assert found.p_value == pytest.approx(welch.pvalue, rel=0.01)
    interval = welch.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=0.01)


def test_with_images_alone_it_is_the_interval_of_agresti_and_min():
    """Equal runs of each method: a paired table of four cells, with half an image added to each."""
    both, only_a, only_b, neither = 40, 25, 10, 25
    row_a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    row_b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    found = contest("a", np.stack([row_a, row_a]), "b", np.stack([row_b, row_b]))
    n, b, c = 102, only_a + 0.5, only_b + 0.5
    expected = np.sqrt(((b + c) - (b - c) ** 2 / n) / n**2)
    assert found.seed_error == 0
    assert found.image_error == pytest.approx(expected, rel=1e-12)
    half = stats.t.ppf(0.975, 99) * expected
    assert (found.low, found.high) == pytest.approx((0.15 - half, 0.15 + half), rel=1e-9)


def test_both_errors_add_up_in_squares():
    found = contest("a", runs((0.7, 0.6, 0.65)), "b", runs((0.5, 0.55, 0.52)))
    total = np.hypot(found.seed_error, found.image_error)
    assert 1.96 * total < found.high - found.difference < 4.31 * total


def test_a_lucky_seed_does_not_win():
    """Every image agrees that a is better by 6 points, and yet a's own seeds differ by 20."""
    lucky = contests({"a": runs((0.50, 0.60, 0.70)), "b": runs((0.53, 0.54, 0.55))})[0]
    assert lucky.difference == pytest.approx(0.06, abs=0.01)
    assert lucky.winner is None
    steady = contests({"a": runs((0.59, 0.60, 0.61)), "b": runs((0.53, 0.54, 0.55))})[0]
    assert steady.winner == "a"
    assert contests({"b": runs((0.53, 0.54, 0.55)), "a": runs((0.59, 0.60, 0.61))})[0].winner == "a"


def test_a_few_images_do_not_win():
    few = contests({"a": runs((0.56, 0.56), images=50), "b": runs((0.50, 0.50), images=50)})[0]
    assert few.seed_error == 0
    assert few.winner is None


def test_the_same_runs_are_no_contest():
    found = contest("a", runs((0.6, 0.62)), "b", runs((0.6, 0.62)))
    assert (found.difference, found.p_value) == (0, 1)
    assert found.low < 0 < found.high


def test_all_against_none_wins_and_stays_within_the_range():
    found = contest("a", np.ones((2, 20), bool), "b", np.zeros((2, 20), bool))
    assert found.difference == 1
    assert found.low < found.high == 1
    assert found.image_error > 0
    assert found.winner == "a"


def test_pairs_are_adjusted_for_their_number():
    verdicts = {name: runs((share, share + 0.01, share - 0.01)) for name, share in
                {"a": 0.60, "b": 0.55, "c": 0.54, "d": 0.50}.items()}  # fmt: skip
    found = contests(verdicts)
    assert [(one.first, one.second) for one in found] == [
        ("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")
    ]  # fmt: skip
    assert [one.adjusted for one in found] == holm([one.p_value for one in found])
    assert all(one.adjusted >= one.p_value for one in found)


def test_equal_methods_rarely_have_a_winner():
    """Seeds move accuracy by 3 points: a test over the images of single runs would name winners all the time."""
    generator = np.random.default_rng(1)
    winners, naive = 0, 0
    for trial in range(200):
        shares = generator.normal(0.5, 0.03, size=(2, 3))
        a, b = (runs(row, images=400, seed=trial) for row in shares)
        winners += contests({"a": a, "b": b})[0].winner is not None
        discordant = (int((a[0] & ~b[0]).sum()), int((b[0] & ~a[0]).sum()))
        naive += stats.binomtest(discordant[0], max(1, sum(discordant))).pvalue < LEVEL
    assert winners / 200 <= LEVEL + 0.02
    assert naive / 200 > 0.5


def test_a_true_difference_is_found():
    generator = np.random.default_rng(2)
    found = 0
    for trial in range(50):
        a, b = (runs(generator.normal(mean, 0.01, size=3), seed=trial) for mean in (0.60, 0.52))
        found += contests({"a": a, "b": b})[0].winner == "a"
    assert found >= 45


def test_one_seed_is_refused():
    with pytest.raises(ValueRangeError, match=r"b has 1 training seed.* and 1000 image") as caught:
        contest("a", runs((0.5, 0.6)), "b", runs((0.5,)))
    assert "two seeds or more" in caught.value.remedy
    with pytest.raises(ValueRangeError, match="0 image"):
        contest("a", np.ones((3, 0), bool), "b", np.ones((3, 0), bool))


def test_other_images_and_other_things_than_verdicts_are_refused():
    with pytest.raises(ShapeError, match="a has verdicts on 1000 images, b on 900"):
        contest("a", runs((0.5, 0.6)), "b", runs((0.5, 0.6), images=900))
    with pytest.raises(ShapeError, match=r"verdicts of a are float64 of shape \(2, 3\)"):
        contest("a", np.full((2, 3), 0.5), "b", np.ones((2, 3), bool))
    with pytest.raises(ShapeError, match=r"shape \(1, 2, 3\)"):
        contest("a", np.ones((1, 2, 3), bool), "b", np.ones((2, 3), bool))
    with pytest.raises(ValueRangeError, match="and 0 image"):
        contest("a", np.ones(0, bool), "b", np.ones((2, 3), bool))


def test_a_model_without_seeds_adds_no_spread_of_its_own():
    tuned, original = runs((0.5, 0.6, 0.55)), runs((0.3,))[0]
    found = contest("tuned", tuned, "original", original)
    assert found.seed_error == pytest.approx(stats.sem(tuned.mean(axis=1)))
    assert found.winner == "tuned"
    neither = contest("before", original, "after", ~original)
    assert neither.seed_error == 0
