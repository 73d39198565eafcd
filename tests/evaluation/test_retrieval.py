from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironclip.errors import ShapeError, ValueRangeError
from ironclip.evaluation.intervals import wilson
from ironclip.evaluation.retrieval import chance_at_k, clustered_share, hits_at_k


def brute_force(similarity, queries, targets, k):
    """Sort the targets of each query, among equal ones those that do not match first, and look at the first k."""
    hits = []
    for scores, image in zip(similarity, queries, strict=True):
        order = sorted(range(len(targets)), key=lambda t: (-scores[t], targets[t] == image))
        hits.append(any(targets[t] == image for t in order[:k]))
    return hits


@given(
    images=st.integers(1, 6),
    captions=st.integers(1, 4),
    seed=st.integers(0, 10_000),
    levels=st.sampled_from([2, 5, 10**6]),
    data=st.data(),
)
def test_hits_equal_a_sorted_list(images, captions, seed, levels, data):
    generator = np.random.default_rng(seed)
    owners = generator.permutation(np.repeat(np.arange(images), captions))
    similarity = generator.integers(0, levels, (images, len(owners))) / levels  # few levels: many ties
    for matrix, queries, targets in (
        (similarity, np.arange(images), owners),
        (similarity.T, owners, np.arange(images)),
    ):
        k = data.draw(st.integers(1, len(targets)))
        assert hits_at_k(matrix, queries, targets, k).tolist() == brute_force(matrix, queries, targets, k)


def test_a_model_that_says_the_same_of_everything_finds_nothing():
    assert not hits_at_k(np.ones((3, 6)), [0, 1, 2], [0, 0, 1, 1, 2, 2], 4).any()
    assert hits_at_k(np.ones((3, 6)), [0, 1, 2], [0, 0, 1, 1, 2, 2], 5).all()


@pytest.mark.parametrize(
    ("similarity", "queries", "targets", "k", "error", "words"),
    [
        (np.zeros((2, 3)), [0, 1], [0, 1], 1, ShapeError, r"similarities \(2, 3\) for \(2,\) queries and \(2,\)"),
        (np.zeros(3), [0], [0, 1, 2], 1, ShapeError, "one row a query"),
        ([[np.nan, 1.0]], [0], [0, 1], 1, ValueRangeError, "not all finite"),
        (np.zeros((1, 2)), [0], [0, 1], 3, ValueRangeError, "k is 3, of 2 targets"),
        (np.zeros((1, 2)), [0], [0, 1], 0, ValueRangeError, "k is 0"),
        (np.zeros((2, 2)), [0, 7], [0, 1], 1, ValueRangeError, r"query 1 \(image 7\) has no match"),
    ],
)
def test_what_does_not_fit_is_refused(similarity, queries, targets, k, error, words):
    with pytest.raises(error, match=words):
        hits_at_k(similarity, queries, targets, k)


def test_chance_counts_all_orders():
    for targets in (3, 4, 5):
        for matches in range(targets + 1):
            orders = list(permutations(range(targets)))
            for k in range(targets + 1):
                share = sum(any(t < matches for t in order[:k]) for order in orders) / len(orders)
                assert chance_at_k(targets, matches, k) == pytest.approx(share)


def test_chance_of_flickr8k_is_one_percent_both_ways():
    assert chance_at_k(1000, 1, 10) == pytest.approx(0.01)
    assert chance_at_k(5000, 5, 10) == pytest.approx(0.01, abs=1e-4)
    with pytest.raises(ValueRangeError, match="5 matches and the 1 nearest of 3"):
        chance_at_k(3, 5, 1)


# Intervals


def test_queries_on_their_own_have_wilsons_interval():
    hits = np.arange(50) % 3 == 0
    assert clustered_share(hits, np.arange(50) * 7) == wilson(17, 50)


def test_captions_that_stand_or_fall_together_are_worth_one():
    hits = np.arange(400) % 4 == 0
    together = clustered_share(np.repeat(hits, 5), np.repeat(np.arange(400), 5))
    alone = wilson(100, 400)
    assert together.estimate == 0.25
    assert together.low == pytest.approx(alone.low, abs=0.006)
    assert together.high == pytest.approx(alone.high, abs=0.006)


def test_captions_that_know_nothing_of_each_other_are_worth_five():
    generator = np.random.default_rng(0)
    hits = generator.random(2000) < 0.3
    clustered = clustered_share(hits, np.repeat(np.arange(400), 5))
    alone = wilson(int(hits.sum()), 2000)
    assert clustered.high - clustered.low == pytest.approx(alone.high - alone.low, rel=0.1)


def test_the_interval_is_that_of_drawing_clusters_one_by_one():
    generator = np.random.default_rng(1)
    sizes = generator.integers(1, 6, 60)
    clusters = np.repeat(np.arange(60), sizes)
    ease = generator.random(60)
    hits = generator.random(len(clusters)) < ease[clusters]
    shares = []
    for _ in range(4000):
        chosen = generator.integers(0, 60, 60)
        shares.append(np.concatenate([hits[clusters == one] for one in chosen]).mean())
    found = clustered_share(hits, clusters)
    assert found.estimate == hits.mean()
    np.testing.assert_allclose([found.low, found.high], np.quantile(shares, [0.025, 0.975]), atol=0.012)


def test_order_and_names_of_clusters_do_not_matter():
    hits, clusters = np.array([True, False, True, True, False, False]), np.array([0, 0, 1, 1, 2, 2])
    other = clustered_share(hits[::-1], 100 - clusters[::-1])
    assert clustered_share(hits, clusters) == other
    assert clustered_share(hits, clusters) == clustered_share(hits, clusters)


@pytest.mark.parametrize("value", [False, True])
def test_all_alike_still_has_a_width(value):
    found = clustered_share(np.full(20, value), np.repeat(np.arange(4), 5))
    expected = wilson(4 if value else 0, 4)
    assert (found.estimate, found.low, found.high) == (float(value), expected.low, expected.high)
    assert not math.isclose(found.low, found.high)


def test_shapes_of_hits_and_clusters():
    with pytest.raises(ShapeError, match=r"hits have the shape \(2,\), clusters \(3,\)"):
        clustered_share([True, False], [0, 1, 2])
    with pytest.raises(ValueRangeError, match="0 queries"):
        clustered_share([], [])
