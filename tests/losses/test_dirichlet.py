from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Dirichlet, kl_divergence

from ironclip.losses.dirichlet import beyond_evidence, concentration, dirichlet_kl, evidence_kl
from oracles import dirichlet as oracle
from reference_values import FILE, needs_reference_values

TEMPERATURE = 0.07


def row(*values):
    return torch.tensor([[float(value) for value in values]], dtype=torch.float64)


def gradients(first, second):
    leaves = first.clone().requires_grad_(), second.clone().requires_grad_()
    return torch.autograd.grad(dirichlet_kl(*leaves).sum(), leaves)


# Reference values


def reference_cases(name):
    return [case for case in json.loads(FILE.read_text())["cases"] if case["name"] == name]


@needs_reference_values
def test_every_reference_pair():
    """Concentrations from 1e-3 to 1e13, equal ones, nearly equal ones, and others."""
    cases = reference_cases("dirichlet_kl")
    assert len(cases) == 36
    for case in cases:
        found = dirichlet_kl(row(*case["inputs"]["alpha"]), row(*case["inputs"]["beta"])).item()
        expected = float(case["value"])
        # Between equals it is exactly 0; elsewhere what is left is the rounding of the inputs to float64.
        assert abs(found - expected) <= 1e-8 * expected, case


@needs_reference_values
def test_gradient_of_every_reference_pair():
    cases = reference_cases("dirichlet_kl_grad_alpha")
    assert len(cases) == 36
    for case in cases:
        found, _ = gradients(row(*case["inputs"]["alpha"]), row(*case["inputs"]["beta"]))
        np.testing.assert_allclose(found, row(*case["value"]), rtol=1e-8, atol=0, err_msg=str(case))


@needs_reference_values
def test_every_row_of_ucat():
    """Concentrations of about 1e6 to 1e12, as cosines make them at UCAT's temperature."""
    (case,) = reference_cases("ucat_kl")
    inputs = {
        name: torch.tensor(case["inputs"][name], dtype=torch.float64) for name in ("adv", "teacher_clean", "text")
    }
    views = {name: F.normalize(rows, dim=-1) for name, rows in inputs.items()}
    a, b = (concentration(views[name] @ views["text"].T, TEMPERATURE) for name in ("adv", "teacher_clean"))
    assert dirichlet_kl(a, b).tolist() == pytest.approx([float(value) for value in case["value"]], rel=1e-9)


# Golden values and closed forms


@pytest.mark.parametrize(
    ("a", "b", "value"),
    [
        ((1, 2, 3), (2, 2, 2), 0.80685282),
        ((2, 2, 2), (1, 2, 3), 0.69314718),
        ((10, 1, 1), (1, 1, 1), 2.28915137),
    ],
)
def test_golden_values(a, b, value):
    assert dirichlet_kl(row(*a), row(*b)).item() == pytest.approx(value, rel=1e-8)


def test_golden_value_at_large_concentrations():
    """The plan's UCAT example, with the published code's 1e-6; its evidence part is all of it to 1e-6."""
    a = concentration(row(0.22, 0.26, 0.21), TEMPERATURE) + 1e-6
    b = concentration(row(0.30, 0.25, 0.20), TEMPERATURE) + 1e-6
    assert dirichlet_kl(a, b).item() == pytest.approx(40514283.3124, rel=1e-12)
    assert evidence_kl(a, b).item() == pytest.approx(40514283.3124, rel=1e-6)


def test_from_flat_to_flat_with_more_evidence():
    """Dir(1, 1) is uniform on [0, 1]: KL to Beta(n, n) is ln B(n, n) + 2 (n - 1), a number made of factorials."""
    for n in (2, 3, 5):
        beta = np.prod(np.arange(1.0, n)) ** 2 / np.prod(np.arange(1.0, 2 * n))
        assert dirichlet_kl(row(1, 1), row(n, n)).item() == pytest.approx(np.log(beta) + 2 * (n - 1), rel=1e-12)


def test_equals_torch_where_torch_is_exact():
    random = torch.Generator().manual_seed(0)
    a, b = (1 + 49 * torch.rand(64, 5, generator=random, dtype=torch.float64) for _ in range(2))
    leaf = a.clone().requires_grad_()
    theirs = kl_divergence(Dirichlet(leaf), Dirichlet(b))
    torch.testing.assert_close(dirichlet_kl(a, b), theirs.detach(), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(gradients(a, b)[0], torch.autograd.grad(theirs.sum(), leaf)[0], rtol=1e-9, atol=1e-11)


# Against 60 digits


def pairs(kind, count=12):
    """Draw pairs of rows of 2 to 5 concentrations."""
    random = np.random.default_rng(len(kind))
    for _ in range(count):
        a = 10 ** random.uniform(-3, 13, size=random.integers(2, 6))
        if kind == "unrelated":
            yield a, 10 ** random.uniform(-3, 13, size=a.shape)
        elif kind == "apart by up to 100":
            yield a, a * 10 ** random.uniform(-2, 2, size=a.shape)
        elif kind == "nearly equal":
            yield a, a * (1 + random.choice([-1, 1], size=a.shape) * 10 ** random.uniform(-6, -1, size=a.shape))
        else:
            yield a, a * 10 ** random.uniform(-1, 1)


@pytest.mark.parametrize("kind", ["unrelated", "apart by up to 100", "nearly equal", "proportional"])
def test_value_equals_the_oracle(kind):
    for a, b in pairs(kind):
        assert dirichlet_kl(row(*a), row(*b)).item() == pytest.approx(float(oracle.kl(a, b)), rel=1e-7), (a, b)


@pytest.mark.parametrize("kind", ["unrelated", "apart by up to 100", "nearly equal"])
def test_gradients_equal_the_oracle(kind):
    """By the logarithms of the concentrations, which is how cosines move them."""
    for a, b in pairs(kind):
        for at, found, expected in zip((a, b), gradients(row(*a), row(*b)), oracle.kl_gradients(a, b), strict=True):
            wanted = at * np.array([float(value) for value in expected])
            np.testing.assert_allclose(at * found[0].numpy(), wanted, rtol=0, atol=1e-7 * np.abs(wanted).max())


def test_gradient_equals_differences():
    a, b = row(0.3, 2.0, 40.0), row(1.5, 9.0, 0.2)
    for place, (leaf, found) in enumerate(zip((a, b), gradients(a, b), strict=True)):
        for index in range(3):
            step = torch.zeros_like(leaf)
            step[0, index] = 1e-6 * leaf[0, index]
            ends = [[a, b], [a, b]]
            ends[0][place], ends[1][place] = leaf + step, leaf - step
            slope = (dirichlet_kl(*ends[0]) - dirichlet_kl(*ends[1])) / (2 * step[0, index])
            assert found[0, index].item() == pytest.approx(slope.item(), rel=1e-7, abs=1e-9)


# Properties


@pytest.mark.parametrize("exponent", [-3, 0, 6, 13])
def test_is_exactly_zero_between_equals_and_so_is_its_gradient(exponent):
    a = 10.0**exponent * row(1, 2.5, 0.4)
    assert dirichlet_kl(a, a.clone()).item() == 0
    for gradient in gradients(a, a.clone()):
        assert (gradient == 0).all()


@pytest.mark.parametrize("kind", ["unrelated", "nearly equal", "proportional"])
def test_is_never_negative(kind):
    for a, b in pairs(kind, 50):
        assert dirichlet_kl(row(*a), row(*b)).item() >= 0
        assert evidence_kl(row(*a), row(*b)).item() >= 0


def test_with_equal_shares_only_the_totals_count():
    """What is left is (C - 1)/2 (ln r + 1/r - 1), r = a0 / b0, where evidence is large (methods 2.6)."""
    b = 1e9 * row(1, 2.5, 0.4, 7)
    for ratio in (0.3, 1.001, 20.0):
        assert evidence_kl(ratio * b, b).item() == pytest.approx(0, abs=1e-6)
        expected = 3 / 2 * (np.log(ratio) + 1 / ratio - 1)
        assert beyond_evidence(ratio * b, b).item() == pytest.approx(expected, rel=1e-6)


def test_evidence_part_is_a_distillation_weighted_by_evidence():
    a, b = 1e4 * row(1, 2.5, 0.4), 1e6 * row(3, 0.1, 2)
    p, q = a / a.sum(), b / b.sum()
    assert evidence_kl(a, b).item() == pytest.approx((b.sum() * (q * (q / p).log()).sum()).item(), rel=1e-12)


def test_rows_do_not_know_of_each_other():
    random = torch.Generator().manual_seed(1)
    a, b = (torch.exp(14 * torch.rand(7, 5, generator=random, dtype=torch.float64)) for _ in range(2))
    whole = dirichlet_kl(a, b)
    for index in range(7):
        # Alone, no row is below the bound of the series, or all are: the other branch must not matter.
        assert torch.equal(dirichlet_kl(a[[index]], b[[index]]), whole[[index]])


def test_float32_inputs_are_computed_in_float64():
    similarity = torch.tensor([[0.3, 0.1, -0.2], [0.9, -0.9, 0.0]], requires_grad=True)
    a = concentration(similarity, TEMPERATURE)
    value = dirichlet_kl(a, concentration(similarity.detach().flip(1), TEMPERATURE))
    assert value.dtype == a.dtype == torch.float64
    value.sum().backward()
    assert similarity.grad.dtype == torch.float32
    assert torch.isfinite(similarity.grad).all()


@pytest.mark.parametrize("cosine", [-1.0, 1.0])
def test_gradients_stay_finite_at_the_ends(cosine):
    similarity = torch.full((2, 4), cosine, requires_grad=True)
    other = concentration(torch.tensor([[1.0, -1.0, 0.3, 0.0]] * 2), TEMPERATURE)
    dirichlet_kl(concentration(similarity, TEMPERATURE), other).sum().backward()
    assert torch.isfinite(similarity.grad).all()


def test_concentration_has_the_shares_of_a_softmax():
    similarity = torch.tensor([[0.3, 0.1, -0.2]])
    found = concentration(similarity, TEMPERATURE)
    assert found[0, 0].item() == pytest.approx(np.exp((np.float32(0.3).astype(float) + 1) / TEMPERATURE), rel=1e-12)
    torch.testing.assert_close(found / found.sum(), torch.softmax(similarity.double() / TEMPERATURE, dim=1))
    assert concentration(torch.tensor([[-1.0, 1.0]]), TEMPERATURE).tolist()[0] == pytest.approx([1, 2.561e12], rel=1e-3)
