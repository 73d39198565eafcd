from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from ironclip.losses import uncertainty
from oracles import dirichlet as oracle
from reference_values import FILE, needs_reference_values

NAMES = ("expected_entropy", "mutual_information", "ucat_eu", "vacuity", "total_entropy")


def row(*values):
    return torch.tensor([[float(value) for value in values]], dtype=torch.float64)


@needs_reference_values
def test_every_reference_value():
    cases = [case for case in json.loads(FILE.read_text())["cases"] if case["name"] == "dirichlet_uncertainty"]
    assert len(cases) == 5
    for case in cases:
        for name, value in zip(NAMES, case["value"], strict=True):
            found = getattr(uncertainty, name)(row(*case["inputs"]["alpha"])).item()
            assert found == pytest.approx(float(value), rel=1e-9), (name, case)


@pytest.mark.parametrize(("a", "au", "eu"), [((1, 1, 1), 0.83333333, 0.5), ((10, 1, 1), 0.49573714, 0.2)])
def test_golden_values(a, au, eu):
    assert uncertainty.expected_entropy(row(*a)).item() == pytest.approx(au, rel=1e-7)
    assert uncertainty.ucat_eu(row(*a)).item() == pytest.approx(eu, rel=1e-12)


@pytest.mark.parametrize("name", ["expected_entropy", "mutual_information", "total_entropy"])
def test_equals_the_oracle(name):
    random = np.random.default_rng(0)
    for low, high in [(-3, 0), (0, 3), (1, 1.5), (3, 12)] * 5:
        a = 10 ** random.uniform(low, high, size=random.integers(2, 6))
        found = getattr(uncertainty, name)(row(*a)).item()
        assert found == pytest.approx(float(getattr(oracle, name)(a)), rel=1e-9, abs=1e-14), a


@pytest.mark.parametrize("classes", [2, 3, 10, 200])
def test_of_ignorance(classes):
    """Flat and with one unit of evidence a class: H(C) - 1 nats are aleatoric (H the harmonic number)."""
    a = torch.ones(1, classes)
    harmonic = math.fsum(1 / n for n in range(1, classes + 1))
    assert uncertainty.total_entropy(a).item() == pytest.approx(math.log(classes), rel=1e-12)
    assert uncertainty.expected_entropy(a).item() == pytest.approx(harmonic - 1, rel=1e-12)
    assert uncertainty.vacuity(a).item() == 1
    assert uncertainty.ucat_eu(a).item() == 0.5


def test_more_evidence_leaves_only_the_aleatoric_part():
    shares = row(0.5, 0.3, 0.2)
    epistemic = [uncertainty.mutual_information(10.0**n * shares).item() for n in range(13)]
    assert all(later < earlier for earlier, later in pairwise(epistemic))
    assert epistemic[12] == pytest.approx(2 / (2 * 1e12), rel=1e-9)
    assert uncertainty.expected_entropy(1e12 * shares).item() == pytest.approx(
        uncertainty.total_entropy(shares).item(), rel=1e-11
    )


def test_parts_add_up():
    a = torch.rand(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).mul(8).exp()
    torch.testing.assert_close(
        uncertainty.expected_entropy(a) + uncertainty.mutual_information(a), uncertainty.total_entropy(a)
    )


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_computed_in_float64_a_row_each(name):
    a = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)).mul(25).exp()
    found = getattr(uncertainty, name)(a)
    assert found.shape == (6,)
    assert found.dtype == torch.float64
    assert torch.equal(getattr(uncertainty, name)(a[2:3]), found[2:3])
