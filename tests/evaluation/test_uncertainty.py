from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax

from ironclip.errors import ConfigError
from ironclip.evaluation import uncertainty
from ironclip.evaluation.uncertainty import (
    dirichlet_measures,
    log_concentration,
    predictive_entropy,
    uncertainty_scores,
)
from ironclip.losses import uncertainty as in_training
from oracles import dirichlet as oracle

ROWS = [[2.0, 1.0, 1.0], [1e6, 2e6, 3e6], [1e-3, 5.0, 29.0], [31.0, 30.0, 1e-6], [2.6e12, 1e12, 3e12], [1.0, 1.0, 1.0]]


def test_worked_examples():
    found = dirichlet_measures(np.log([[2, 1, 1], [1e6, 2e6, 3e6]]))
    assert round(float(found.total[0]), 6) == 1.039721
    assert found.expected[0] == pytest.approx(5 / 6, abs=1e-14)
    assert round(float(found.mutual_information[0]), 6) == 0.206387
    assert found.vacuity[0] == pytest.approx(0.75, abs=1e-15)
    assert f"{found.mutual_information[1]:.5e}" == "1.66667e-07"
    assert found.mutual_information[1] == pytest.approx(2 / (2 * 6e6), rel=1e-6)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_equal_to_sixty_digits(row):
    found = dirichlet_measures(np.log([row]))
    assert found.total[0] == pytest.approx(float(oracle.total_entropy(row)), rel=1e-12)
    assert found.expected[0] == pytest.approx(float(oracle.expected_entropy(row)), rel=1e-12)
    assert found.mutual_information[0] == pytest.approx(float(oracle.mutual_information(row)), rel=1e-11)


def test_equal_to_the_measures_of_training():
    concentration = np.exp(np.random.default_rng(0).uniform(-3, 12, size=(50, 8)))
    found, tensor = dirichlet_measures(np.log(concentration)), torch.from_numpy(concentration)
    for ours, theirs in [
        (found.total, in_training.total_entropy),
        (found.expected, in_training.expected_entropy),
        (found.mutual_information, in_training.mutual_information),
        (found.vacuity, in_training.vacuity),
        (found.ucat_eu, in_training.ucat_eu),
    ]:
        np.testing.assert_allclose(ours, theirs(tensor).numpy(), rtol=1e-10)


def test_rows_are_computed_some_at_a_time_to_the_same_bits(monkeypatch):
    logits = np.random.default_rng(1).normal(scale=20, size=(100, 37))
    found = {}
    for rows in (1, 7, 1000):
        monkeypatch.setattr(uncertainty, "_ROWS", rows)
        measures = dirichlet_measures(log_concentration(logits, "exp"))
        found[rows] = uncertainty_scores(logits, measures) | {"all": measures.total, "log": measures.log_total}
    for name, whole in found[1000].items():
        np.testing.assert_array_equal(found[1][name], whole)
        np.testing.assert_array_equal(found[7][name], whole)


def test_logits_of_thousands_and_none_at_all():
    logits = np.array([[5000.0, -5000.0, 0.0], [-900.0, -900.0, -900.0], [0.0, -np.inf, 0.0]])
    found = dirichlet_measures(logits)
    for values in (found.total, found.expected, found.mutual_information, found.ucat_eu):
        assert np.isfinite(values).all()
        assert (values >= 0).all()
    assert found.mutual_information[0] == 0
    assert found.mutual_information[1] == pytest.approx(math.log(3))  # next to no evidence: all that there is to know
    assert found.expected[1] == pytest.approx(0, abs=1e-12)
    assert (found.total == found.expected + found.mutual_information).all()


def test_maps_of_logits_to_concentrations():
    logits = np.array([[20.0, -10.0, 35.0]])
    expected = {
        "ucat_train": np.exp((logits / 100 + 1) / 0.07),
        "ucat_eval": np.exp(np.log1p(np.exp(logits))),
        "exp": np.exp(logits),
        "softplus+1": np.log1p(np.exp(logits)) + 1,
        "relu+1": np.maximum(logits, 0) + 1,
    }
    for name, alpha in expected.items():
        found = np.exp(log_concentration(logits, name, logit_scale=100.0))
        np.testing.assert_allclose(found, alpha, rtol=1e-12)
    with pytest.raises(ConfigError, match=r"logit scale .* is not known"):
        log_concentration(logits, "ucat_train")
    with pytest.raises(ConfigError, match='unknown alpha_map "tanh"'):
        log_concentration(logits, "tanh")


def test_scores_rise_with_doubt_and_see_past_a_confidence_that_rounds_to_one():
    logits = np.array([[100.0, 50.0, 0.0], [100.0, 40.0, 0.0], [1.0, 0.9, 0.8]])
    assert (softmax(logits, axis=1).max(axis=1)[:2] == 1).all()
    scores = uncertainty_scores(logits, dirichlet_measures(log_concentration(logits, "exp")))
    assert set(scores) == {
        "doubt", "entropy", "closeness", "expected_entropy", "mutual_information", "vacuity", "energy",
    }  # fmt: skip
    assert scores["doubt"][0] == pytest.approx(math.exp(-50), rel=1e-12)
    assert scores["doubt"][1] < scores["doubt"][0] < scores["doubt"][2]
    assert scores["closeness"] == pytest.approx([-50, -60, -0.1])
    assert scores["energy"] == pytest.approx([-100, -100, -np.log(np.exp(logits[2]).sum())])
    for values in scores.values():
        assert values[2] == values.max()


def test_entropy_of_the_softmax():
    assert predictive_entropy([[3.0, 3.0, 3.0]])[0] == pytest.approx(math.log(3))
    assert predictive_entropy([[0.0, -np.inf]])[0] == 0
