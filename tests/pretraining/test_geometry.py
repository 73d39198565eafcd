"""Axes against numpy's singular values, ridge regression against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.kernel_ridge import KernelRidge

from ironclip.errors import ShapeError, ValueRangeError
from ironclip.pretraining import geometry
from ironclip.pretraining.geometry import PENALTIES, SHARPNESS, fit_ridge, principal_axes


@pytest.fixture
def rows():
    """Give 50 rows of 8 numbers that vary differently and are correlated."""
    random = torch.Generator().manual_seed(0)
    return torch.randn(50, 8, generator=random) @ torch.randn(8, 8, generator=random) + 3


@pytest.fixture
def unit_rows():
    return F.normalize(torch.randn(40, 6, generator=torch.Generator().manual_seed(1)), dim=-1)


@pytest.fixture
def outputs(unit_rows):
    """Give a smooth function of the unit rows."""
    return torch.stack([unit_rows[:, 0] * unit_rows[:, 1], unit_rows[:, 2].exp(), unit_rows[:, 3] + 5], dim=1)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunk", [7, 4096])
def test_axes_are_those_of_a_singular_value_decomposition(rows, weighted, chunk, monkeypatch):
    monkeypatch.setattr(geometry, "_CHUNK", chunk)
    weights = torch.linspace(0.1, 2, 50) if weighted else None
    axes = principal_axes(rows, 3, weights)
    x, w = rows.double().numpy(), np.full(50, 1 / 50) if weights is None else weights.double().numpy()
    w = w / w.sum()
    mean = w @ x
    _, values, vectors = np.linalg.svd(np.sqrt(w)[:, None] * (x - mean), full_matrices=False)
    vectors *= np.sign(vectors[np.arange(8), np.abs(vectors).argmax(axis=1)])[:, None]
    np.testing.assert_allclose(axes.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(axes.deviations, values[:3], rtol=1e-10)
    np.testing.assert_allclose(axes.directions, vectors[:3].T, atol=1e-10)
    assert axes.share == pytest.approx((values[:3] ** 2).sum() / (values**2).sum())


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_projection_divides_by_a_power_of_the_deviations(rows, whitening):
    axes = principal_axes(rows, 4)
    along = (rows.double() - axes.mean) @ axes.directions
    found = axes.project(rows, whitening)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, F.normalize(along / along.std(dim=0, correction=0) ** whitening, dim=-1).float())


def test_signs_do_not_depend_on_the_order_of_rows(rows):
    mirrored = principal_axes(rows.flip(0), 8)
    torch.testing.assert_close(mirrored.directions, principal_axes(rows, 8).directions)
    assert (mirrored.directions.gather(0, mirrored.directions.abs().argmax(0, keepdim=True)) > 0).all()


def test_weights_count_as_repetitions(rows):
    weights = torch.ones(50)
    weights[:5] = 3
    repeated = torch.cat([rows, rows[:5], rows[:5]])
    torch.testing.assert_close(principal_axes(rows, 8, weights).directions, principal_axes(repeated, 8).directions)


def test_more_axes_than_the_rows_have_are_refused(rows):
    with pytest.raises(ValueRangeError, match="4 phrases vary along 3 axes, 5 are asked for"):
        principal_axes(rows[:4], 5)


def test_weights_are_one_a_row(rows):
    with pytest.raises(ShapeError, match=r"\(3,\) weights for 50 rows"):
        principal_axes(rows, 2, torch.ones(3))


def test_ridge_is_that_of_scikit_learn(unit_rows, outputs):
    folds = [row % 4 for row in range(40)]
    ridge = fit_ridge(unit_rows, outputs, folds)
    x, y = unit_rows.double().numpy(), outputs.double().numpy()

    def oracle(penalty, chosen):
        return KernelRidge(kernel="rbf", gamma=SHARPNESS, alpha=penalty).fit(x[chosen], y[chosen] - y[chosen].mean(0))

    cosines = []
    for penalty in PENALTIES:
        found = []
        for fold in range(4):
            held = np.array(folds) == fold
            predicted, true = oracle(penalty, ~held).predict(x[held]), y[held] - y[~held].mean(0)
            found += list((predicted * true).sum(1) / np.linalg.norm(predicted, axis=1) / np.linalg.norm(true, axis=1))
        cosines.append(np.mean(found))
    assert ridge.penalty == PENALTIES[int(np.argmax(cosines))]
    assert ridge.cosine == pytest.approx(max(cosines))
    fresh = F.normalize(unit_rows + 0.1, dim=-1)
    wanted = oracle(ridge.penalty, np.full(40, True)).predict(fresh.double().numpy()) + y.mean(0)
    np.testing.assert_allclose(ridge(fresh), wanted, atol=1e-5)


def test_ridge_is_the_same_in_parts(unit_rows, outputs, monkeypatch):
    ridge = fit_ridge(unit_rows, outputs, [row % 2 for row in range(40)])
    whole = ridge(unit_rows)
    monkeypatch.setattr(geometry, "_CHUNK", 7)
    torch.testing.assert_close(ridge(unit_rows), whole)


def test_ridge_wants_one_of_each_a_row(unit_rows, outputs):
    with pytest.raises(ShapeError, match="40 inputs, 40 outputs, 3 folds"):
        fit_ridge(unit_rows, outputs, [0, 1, 0])


def test_ridge_wants_two_folds(unit_rows, outputs):
    with pytest.raises(ValueRangeError, match="fewer than two folds"):
        fit_ridge(unit_rows, outputs, [0] * 40)
