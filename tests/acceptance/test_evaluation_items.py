"""The items of the evaluation can fail: each is shown something that is wrong."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from acceptance.claims import CannotRunError, Context
from acceptance.evaluation_affine import LINF, Problem, falls_short, violations

from acceptance import evaluation, evaluation_affine, evaluation_calibration, evaluation_masks, named_tests, peers
from ironclip.attacks.fgsm import FGSM
from ironclip.attacks.threat_model import ThreatModel


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def figures(item, tmp_path):
    return {figure.claim: figure.value for figure in item.measure(Context(tmp_path, short=True))}


def test_items_and_claims_have_names_of_their_own():
    assert len({item.name for item in evaluation.ITEMS}) == len(evaluation.ITEMS)
    for item in evaluation.ITEMS:
        assert item.claims
        assert len({claim.name for claim in item.claims}) == len(item.claims)


@pytest.mark.parametrize("item", evaluation.ITEMS, ids=lambda item: item.name)
def test_modules_of_an_item_exist(item):
    assert [module for module in item.modules if find_spec(module) is None] == []


def test_the_closed_form_is_that_of_a_search_over_corners():
    """Two pixels: the worst of an linf ball lies at a corner, and the nearest break can be read off a grid."""
    problem = Problem.made_up(3, 0, side=1, images=6)
    corners = torch.tensor(np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T).double() * LINF.radius
    slope, margin, _ = problem.slopes()
    moved = (problem.pixels.flatten(1).double()[:, None] + corners).clamp(0, 1) - problem.pixels.flatten(1).double()[
        :, None
    ]
    found = (margin[:, :, None] + torch.einsum("nrd,ncd->nrc", slope, moved)).flatten(1).amin(dim=1)
    torch.testing.assert_close(problem.worst(LINF), found)


def test_the_radius_is_where_the_worst_margin_is_nothing():
    problem = Problem.made_up(3, 1, side=2, images=8)
    for norm in ("linf", "l2"):
        radius = problem.radius(norm)
        for row in torch.where(radius.isfinite())[0].tolist():
            game = ThreatModel(norm=norm, eps=radius[row].item())
            assert abs(problem.worst(game)[row].item()) < 1e-5


def test_violations_and_shortfalls_are_counted():
    problem = Problem.made_up(3, 0)
    outcome = problem.attacked(FGSM(loss="margin"), LINF)
    assert violations(problem, outcome, LINF) == 0
    assert violations(problem, outcome, dataclasses.replace(LINF, eps="4/256")) > 10  # beyond a smaller ball
    lying = dataclasses.replace(outcome.final, margin=outcome.final.margin + 0.1)
    assert violations(problem, dataclasses.replace(outcome, final=lying), LINF) == len(problem.labels)
    weak = problem.attacked(FGSM(loss="margin", rel_step_size=0.5), LINF)
    assert falls_short(problem, weak, LINF).min() > 0.3


def test_affine_notices_an_attack_that_falls_short(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation_affine, "FGSM", lambda **settings: FGSM(rel_step_size=0.9, **settings))
    measured = evaluation_affine.affine.measure(Context(tmp_path, short=True))
    assert next(measured).value > 0


def test_calibration_notices_a_wrong_figure(tmp_path, monkeypatch):
    found = figures(evaluation_calibration.calibration, tmp_path)
    assert (found["reference"], found["edges"], found["refused"]) == (0, 0, 0)
    monkeypatch.setitem(evaluation_calibration.GIVEN, "ECE", "0.13")
    assert figures(evaluation_calibration.calibration, tmp_path)["reference"] == 1


def test_masks_without_a_test_are_no_pass(tmp_path, monkeypatch):
    case = named_tests.Case("t.py", "test_1_a_quantised_input", "", "failed")
    monkeypatch.setattr(named_tests, "run", lambda nodes: [case])
    found = figures(evaluation_masks.masked_models, tmp_path)
    assert found["mask_1"] == 1
    assert np.isnan(found["mask_2"])


def test_peers_that_are_not_here_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "FOLDER", tmp_path / "none")
    with pytest.raises(CannotRunError, match="--no-deps --target runs/peers"), peers.peers():
        pass


@pytest.mark.slow
@pytest.mark.parametrize(
    "item",
    [evaluation_affine.affine, evaluation_affine.relu_net, evaluation_affine.square_gap],
    ids=lambda item: item.name,
)
def test_attacks_keep_to_every_row_of_the_closed_forms(item, tmp_path):
    found = figures(item, tmp_path)
    for claim in item.claims:
        value = found[claim.name]
        assert value is None or claim.bound.holds(value), (claim.line, value)
