from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from ironclip.errors import ShapeError, ValueRangeError
from ironclip.evaluation.calibration import (
    Bins,
    adaptive_bins,
    brier_terms,
    classwise_ece,
    equal_width_bins,
    fit_temperature,
    nll_terms,
    probabilities,
)
from ironclip.evaluation.ranking import aurc, auroc, excess_aurc, weighted_auroc
from oracles import calibration as oracle

# The reference case of evaluation plan 4.4: n = 10, C = 3, M = 5.
PROBS = np.array(
    [
        [0.50, 0.30, 0.20],
        [0.60, 0.30, 0.10],
        [0.40, 0.35, 0.25],
        [0.10, 0.80, 0.10],
        [0.05, 0.05, 0.90],
        [0.20, 0.20, 0.60],
        [0.00, 1.00, 0.00],
        [0.70, 0.20, 0.10],
        [0.30, 0.45, 0.25],
        [0.05, 0.10, 0.85],
    ]
)
LABELS = np.array([0, 1, 1, 1, 2, 2, 1, 0, 1, 0])
CONFIDENCE = PROBS.max(axis=1)
HITS = PROBS.argmax(axis=1) == LABELS
with np.errstate(divide="ignore"):
    LOGITS = np.log(PROBS)

to_the_last_digit = {"abs": 1e-15, "rel": 1e-14}


def made_up(n: int, classes: int, seed: int = 0, scale: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    logits = scale * generator.normal(size=(n, classes))
    labels = np.where(generator.random(n) < 0.6, logits.argmax(axis=1), generator.integers(0, classes, n))
    return logits.astype(np.float32), labels


# The reference case, each number as printed


def test_reference_right_closed():
    bins = equal_width_bins(CONFIDENCE, HITS, 5)
    assert bins.counts == (0, 1, 4, 2, 3)
    assert bins.hits == (0, 0, 3, 2, 2)
    assert bins.confidence == (None, *map(pytest.approx, (0.4, 0.5375, 0.75, 2.75 / 3)))
    assert bins.gaps == (None, *(pytest.approx(gap, abs=1e-15) for gap in (0.4, -0.2125, -0.25, 0.25)))
    assert bins.ece == pytest.approx(0.25, **to_the_last_digit)
    assert bins.mce == pytest.approx(0.40, **to_the_last_digit)
    assert (HITS.mean(), CONFIDENCE.mean()) == (pytest.approx(0.7), pytest.approx(0.68))


def test_reference_the_other_edge_rule_halves_the_value():
    assert oracle.ece(CONFIDENCE, HITS, 5, oracle.left_closed) == pytest.approx(0.13, **to_the_last_digit)
    assert round(oracle.mce(CONFIDENCE, HITS, 5, oracle.left_closed), 4) == 0.2167
    found = [gap for _, gap in oracle.gaps(CONFIDENCE, HITS, 5, oracle.left_closed)]
    assert [round(abs(gap), 4) for gap in found] == [0.2167, 0.0333, 0.1375]


def test_reference_adaptive():
    bins = adaptive_bins(CONFIDENCE, HITS, range(10), 5)
    assert bins.counts == (2, 2, 2, 2, 2)
    assert [abs(gap) for gap in bins.gaps] == pytest.approx([0.075, 0.05, 0.35, 0.325, 0.05])
    assert bins.ece == pytest.approx(0.17, **to_the_last_digit)
    assert bins.mce == pytest.approx(0.35, **to_the_last_digit)


def test_reference_classwise():
    found = classwise_ece(PROBS, LABELS, 5)
    assert found == pytest.approx([0.17, 0.235, 0.215], **to_the_last_digit)
    assert round(float(np.mean(found)), 6) == 0.206667


def test_reference_proper_scores():
    assert brier_terms(PROBS, LABELS).mean() == pytest.approx(0.443, **to_the_last_digit)
    terms = nll_terms(LOGITS, LABELS)
    assert round(float(terms.mean()), 6) == 0.793719
    assert terms[6] == 0
    assert round(float(terms[9]), 6) == 2.995732
    np.testing.assert_allclose(probabilities(LOGITS), PROBS, atol=1e-15)


def test_reference_ranking():
    order = np.lexsort((range(10), -CONFIDENCE))
    assert order.tolist() == [6, 4, 9, 3, 7, 1, 5, 0, 8, 2]
    assert f"{aurc(CONFIDENCE, HITS, range(10)):.6f}" == "0.217460"
    assert round(excess_aurc(CONFIDENCE, HITS, range(10)), 6) == 0.152738
    assert auroc(CONFIDENCE[HITS], CONFIDENCE[~HITS]) == 13.5 / 21
    assert round(13.5 / 21, 6) == 0.642857


@pytest.mark.parametrize("bins", range(1, 11))
def test_reference_confidence_one_opens_no_bin_of_its_own(bins):
    found = equal_width_bins([0.95, 1.0], [True, False], bins)
    assert found.counts == (*[0] * (bins - 1), 2)
    assert found.ece == pytest.approx(0.475, **to_the_last_digit)


# Against definitions written out


@pytest.mark.parametrize("bins", [1, 5, 10, 15, 20])
@pytest.mark.parametrize(("n", "classes"), [(1, 2), (3, 2), (40, 3), (200, 7)])
def test_equal_to_the_oracle(n, classes, bins):
    logits, labels = made_up(n, classes, seed=n + bins)
    probs = probabilities(logits)
    lists = [oracle.softmax(row) for row in logits.astype(float).tolist()]
    np.testing.assert_allclose(probs, lists, rtol=1e-13, atol=0)
    confidence, hits = probs.max(axis=1), probs.argmax(axis=1) == labels
    ids = [f"s{(7 * index) % n:04d}" for index in range(n)]
    ours = equal_width_bins(confidence, hits, bins)
    assert ours.ece == pytest.approx(oracle.ece(confidence, hits, bins), abs=1e-13)
    assert ours.mce == pytest.approx(oracle.mce(confidence, hits, bins), abs=1e-13)
    assert adaptive_bins(confidence, hits, ids, bins).ece == pytest.approx(
        oracle.adaptive_ece(confidence, hits, ids, bins), abs=1e-13
    )
    for at_least in (0.0, 1 / classes):
        assert classwise_ece(probs, labels, bins, at_least=at_least) == pytest.approx(
            oracle.classwise_ece(probs.tolist(), labels.tolist(), bins, at_least), abs=1e-13
        )
    assert brier_terms(probs, labels).mean() == pytest.approx(oracle.brier(lists, labels), rel=1e-12)
    assert nll_terms(logits, labels).mean() == pytest.approx(oracle.nll(lists, labels), rel=1e-12)
    assert aurc(confidence, hits, ids) == pytest.approx(oracle.aurc(confidence, hits, ids), abs=1e-13)
    if 0 < hits.sum() < n:
        assert auroc(confidence[hits], confidence[~hits]) == oracle.auroc(confidence[hits], confidence[~hits])


def test_equal_to_torchmetrics_where_no_confidence_is_one_or_on_an_edge():
    torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is not installed; the oracle stands alone")
    torch = pytest.importorskip("torch")
    logits, labels = made_up(500, 7)
    probs = probabilities(logits)
    confidence, hits = probs.max(axis=1), probs.argmax(axis=1) == labels
    assert confidence.max() < 1
    for norm, ours in (("l1", equal_width_bins(confidence, hits).ece), ("max", equal_width_bins(confidence, hits).mce)):
        theirs = torchmetrics.functional.classification.multiclass_calibration_error(
            torch.from_numpy(probs), torch.from_numpy(labels), num_classes=7, n_bins=15, norm=norm
        )
        assert ours == pytest.approx(float(theirs), abs=1e-6)


# Edges, empty bins, few samples


@pytest.mark.parametrize("bins", [2, 3, 5, 7, 10, 15, 20])
def test_an_edge_belongs_to_the_bin_below_and_zero_to_the_first(bins):
    edges = [m / bins for m in range(bins + 1)]
    found = equal_width_bins(edges, [True] * (bins + 1), bins)
    assert found.counts == (2, *[1] * (bins - 1))
    above = [np.nextafter(edge, 2) for edge in edges[:-1]]
    assert equal_width_bins(above, [True] * bins, bins).counts == (1,) * bins


def test_empty_bins_have_no_confidence_and_no_weight():
    found = equal_width_bins([0.9, 0.95], [True, False], 10)
    assert found.counts == (0,) * 8 + (1, 1)
    assert found.confidence[:8] == (None,) * 8
    assert found.gaps[8:] == (pytest.approx(-0.1), pytest.approx(0.95))
    assert found.ece == pytest.approx((0.1 + 0.95) / 2)


@pytest.mark.parametrize(("confidence", "hit", "error"), [(1.0, 1, 0), (1.0, 0, 1), (0.0, 0, 0), (0.5, 1, 0.5)])
def test_one_sample(confidence, hit, error):
    for found in (equal_width_bins([confidence], [hit]), adaptive_bins([confidence], [hit], ["a"])):
        assert (found.ece, found.mce) == (error, error)
        assert sum(found.counts) == 1
    assert (aurc([confidence], [hit], ["a"]), excess_aurc([confidence], [hit], ["a"])) == (1 - hit, 0)


def test_all_hits_and_all_misses():
    confidence = np.linspace(0.1, 1, 30)
    assert equal_width_bins(confidence, [True] * 30).ece == pytest.approx(1 - confidence.mean())
    assert equal_width_bins(confidence, [False] * 30).ece == pytest.approx(confidence.mean())
    assert aurc(confidence, [True] * 30, range(30)) == 0
    assert aurc(confidence, [False] * 30, range(30)) == 1
    assert excess_aurc(confidence, [False] * 30, range(30)) == 0


def test_adaptive_parts_differ_by_one_and_the_order_given_does_not_matter():
    confidence = np.array([0.5] * 6 + [0.2, 0.9])
    hits = np.array([1, 0, 1, 1, 0, 0, 1, 0], dtype=bool)
    ids = np.array(list("fbdcaehg"))
    found = adaptive_bins(confidence, hits, ids, 3)
    assert found.counts == (3, 3, 2)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(8)
        assert adaptive_bins(confidence[order], hits[order], ids[order], 3) == found
        assert aurc(confidence[order], hits[order], ids[order]) == aurc(confidence, hits, ids)
    assert adaptive_bins([0.3, 0.6], [True, False], ["a", "b"], 15).counts == (1, 1) + (0,) * 13


def test_saturated_logits_lose_nothing():
    logits = np.array([[5000.0, 0.0, -5000.0], [0.0, 5000.0, 1.0]])
    assert probabilities(logits).max(axis=1).tolist() == [1, 1]
    assert nll_terms(logits, [0, 0]).tolist() == [0, 5000]
    assert equal_width_bins([1.0, 1.0], [True, False]).ece == 0.5


def test_bins_can_be_read_from_their_lists():
    assert Bins((1, 0, 3), (0, 0, 3), (0.2, None, 0.9)).ece == pytest.approx((0.2 + 3 * 0.1) / 4)


# Refused by name


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: equal_width_bins([], []), ValueRangeError, "holds no samples"),
        (lambda: equal_width_bins([0.5], [True], 0), ValueRangeError, "0 bins"),
        (lambda: equal_width_bins([0.5, 0.5], [True]), ShapeError, r"shape \(2,\), hits \(1,\)"),
        (lambda: equal_width_bins([0.5, np.nan, np.nan], [1, 1, 1]), ValueRangeError, "number 1 of 3 .*NaN, as have 1"),
        (lambda: equal_width_bins([0.5, 1.5], [1, 1]), ValueRangeError, r"number 1 of 2 .*outside \[0, 1\]"),
        (lambda: equal_width_bins([-0.1], [1]), ValueRangeError, r"outside \[0, 1\]"),
        (lambda: equal_width_bins([0.1], [2]), ValueRangeError, "other values than true and false"),
        (lambda: adaptive_bins([0.1], [True], ["a", "b"]), ShapeError, "ids of the shape"),
        (lambda: probabilities(np.zeros((3, 1))), ShapeError, "at least 2 classes"),
        (lambda: probabilities(np.zeros((0, 3))), ValueRangeError, "no samples"),
        (lambda: probabilities([[0, 1], [0, np.nan]]), ValueRangeError, "number 1 of 2 has a logit that is NaN"),
        (lambda: probabilities([[0, np.inf]]), ValueRangeError, "infinite logits and no probabilities"),
        (lambda: probabilities([[-np.inf, -np.inf]]), ValueRangeError, "infinite logits and no probabilities"),
        (lambda: probabilities([[0, 1]], 0), ValueRangeError, "temperature is 0"),
        (lambda: brier_terms([[0.5, 0.6]], [0]), ValueRangeError, "do not sum to 1"),
        (lambda: brier_terms([[0.5, np.nan]], [0]), ValueRangeError, "probability that is NaN"),
        (lambda: brier_terms([[3.0, -2.0]], [0]), ValueRangeError, "not logits"),
        (lambda: brier_terms([[1.0]], [0]), ShapeError, "at least 2 classes"),
        (lambda: classwise_ece([[0.5, 0.5]], [2]), ValueRangeError, "none of 2 classes"),
        (lambda: classwise_ece([[0.5, 0.5]], [-1]), ValueRangeError, "none of 2 classes"),
        (lambda: nll_terms([[0, 1]], [0.5]), ValueRangeError, "labels are float64"),
        (lambda: nll_terms([[0, 1]], [0, 1]), ShapeError, "1 samples for labels"),
        (lambda: nll_terms([[0, -np.inf]], [1]), ValueRangeError, "label of probability 0"),
        (lambda: fit_temperature([[0, -np.inf]], [0]), ValueRangeError, "not finite"),
        (lambda: fit_temperature([[2, 2], [1, 1]], [0, 1]), ValueRangeError, "logits of every sample are equal"),
        (lambda: auroc([], [1.0]), ValueRangeError, "positive holds no samples"),
        (lambda: auroc([1.0], [np.nan]), ValueRangeError, "negative is NaN for 1 of 1"),
        (lambda: auroc([[1.0]], [1.0]), ShapeError, "positive has the shape"),
        (lambda: aurc([0.1, np.nan], [1, 1], ["a", "b"]), ValueRangeError, "NaN for 1 of 2 .* the first is number 1"),
        (lambda: aurc([0.1], [1, 1], ["a"]), ShapeError, "one of each"),
    ],
)  # fmt: skip
def test_refused_in_words(call, error, words):
    with pytest.raises(error, match=words):
        call()


# Temperature


def test_temperature_is_where_the_likelihood_is_largest():
    for seed in range(4):
        logits, labels = made_up(300, 6, seed=seed, scale=1 + 3 * seed)
        found = fit_temperature(logits, labels)
        reached = minimize_scalar(
            lambda log_t, z=logits, y=labels: nll_terms(z, y, math.exp(log_t)).mean(),
            bounds=(-3, 3), method="bounded", options={"xatol": 1e-10},
        )  # fmt: skip
        assert not found.at_bound
        assert found.n == 300
        assert math.log(found.value) == pytest.approx(reached.x, abs=1e-5)
        assert nll_terms(logits, labels, found.value).mean() <= reached.fun + 1e-15
        assert nll_terms(logits, labels, found.value).mean() < nll_terms(logits, labels).mean()


def test_temperature_undoes_a_scale_and_changes_no_answer():
    logits, labels = made_up(400, 5)
    one, hundred = fit_temperature(logits, labels), fit_temperature(4 * logits.astype(float), labels)
    assert hundred.value == pytest.approx(4 * one.value, rel=1e-9)
    probs = probabilities(4 * logits, hundred.value)
    assert (probs.argmax(axis=1) == logits.argmax(axis=1)).all()
    generator = np.random.default_rng(1)
    truths = np.array([generator.choice(5, p=row) for row in probabilities(logits[:, :5] / 3)])
    assert fit_temperature(logits, truths).value == pytest.approx(3, rel=0.2)  # labels drawn from the model itself


def test_temperature_at_its_bounds_is_said():
    logits, _ = made_up(50, 4)
    all_right = fit_temperature(logits, logits.argmax(axis=1))
    assert (all_right.value, all_right.at_bound) == (0.05, True)
    all_wrong = fit_temperature(logits, logits.argmin(axis=1))
    assert (all_wrong.value, all_wrong.at_bound) == (20.0, True)


def test_likelihood_equals_scipy():
    logits, labels = made_up(100, 9, scale=40)
    expected = -log_softmax(logits.astype(float) / 2.5, axis=1)[np.arange(100), labels]
    np.testing.assert_allclose(nll_terms(logits, labels, 2.5), expected, atol=1e-12)


# The bootstrap's area


def test_weighted_auroc_is_that_of_the_drawn_samples():
    generator = np.random.default_rng(0)
    high, low = np.round(generator.normal(size=(2, 23)), 1)  # with ties
    weights = np.stack([np.bincount(generator.integers(0, 23, 23), minlength=23) for _ in range(40)]).astype(np.uint16)
    weights[7] = 0
    found = weighted_auroc(high, low, weights)
    assert math.isnan(found[7])
    for index in {*range(40)} - {7}:
        assert found[index] == pytest.approx(
            oracle.auroc(np.repeat(high, weights[index]), np.repeat(low, weights[index])), abs=1e-14
        )
