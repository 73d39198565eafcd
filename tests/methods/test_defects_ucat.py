"""Defects of published code that concern UCAT (methods plan 6): each check passes ours and fails a planted copy."""

from __future__ import annotations

import importlib
import math
import pkgutil

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Dirichlet, kl_divergence

import ironclip
from ironclip.attacks.objectives import input_gradient
from ironclip.losses.dirichlet import concentration, dirichlet_kl
from ironclip.losses.uncertainty import expected_entropy, ucat_eu
from ironclip.models.zero_shot import encode_classes
from ironclip.randomness import SampleRandom
from ironclip.training.trainer import Trainer
from oracles import dirichlet as oracle


def leaves_gradients(one, attack):
    batch = one.batch
    objective = one.trainer.method.adversaries(batch, one.model, one.trainer.teacher)["image"].objective
    attack(objective, batch.pixels, one.trainer.recipe.build_threat(), SampleRandom(0, batch.keys))
    return any(parameter.grad is not None for parameter in one.trainer.parameters.values())


def test_d03_an_attack_leaves_no_gradient_in_the_parameters(bench):
    one = bench("ucat")
    assert not leaves_gradients(one, one.trainer.attack.perturb)

    def by_a_backward_pass(objective, pixels, threat, random):
        point = threat.random_start(pixels, random).requires_grad_(True)
        objective(point).sum().backward()
        return threat.project(point + threat.steepest_ascent(point.grad), pixels)

    assert leaves_gradients(one, by_a_backward_pass)


def features_survive_another_order(bench):
    """The same number of classes in another order: features follow their names."""
    one, other = bench("ucat", classes=10), bench("ucat", classes=10)
    names, templates = other.trainer.prompts
    other.trainer.prompts = (names[::-1], templates)
    return torch.equal(one.batch.class_weights, other.batch.class_weights.flip(0))


def test_d10_text_features_are_never_those_of_another_order(bench, monkeypatch):
    assert features_survive_another_order(bench)
    stored = {}

    def by_their_number(self, names, templates):
        return stored.setdefault(len(names), encode_classes(self.model, names, templates).detach().half()).float()

    monkeypatch.setattr(Trainer, "_encode", by_their_number)
    assert not features_survive_another_order(bench)


def uncertainties_are_as_defined(aleatoric, epistemic):
    flat = torch.ones(1, 3, dtype=torch.float64)
    # Of shares drawn uniformly: 1/2 + 1/3 nats, and three classes of six units of evidence and ignorance.
    return aleatoric(flat).item() == pytest.approx(5 / 6) and epistemic(flat).item() == pytest.approx(0.5)


def test_d25_uncertainties_are_those_of_the_trained_distribution():
    assert uncertainties_are_as_defined(expected_entropy, ucat_eu)

    def published(a):
        classes = a.shape[-1]
        return classes / torch.logsumexp(a + 1, dim=-1) / math.log(classes)

    assert not uncertainties_are_as_defined(expected_entropy, published)


def shares_are_those_of_training(read):
    similarity = torch.tensor([[0.30, 0.25, 0.20]], dtype=torch.float64)
    found = read(similarity)
    return torch.allclose(found / found.sum(), torch.softmax(similarity / 0.07, dim=1))


def test_d25_evaluation_reads_cosines_as_training_does():
    assert shares_are_those_of_training(lambda similarity: concentration(similarity, 0.07))
    assert not shares_are_those_of_training(lambda similarity: F.softplus(100 * similarity).exp())


PAIR = ((1e8, 2.5e8, 4e7), (1.001e8, 2.49e8, 4.01e7))


def is_exact_at_large_concentrations(kl):
    rows = (torch.tensor([values], dtype=torch.float64) for values in PAIR)
    expected = float(oracle.kl(*PAIR))
    return abs(kl(*rows).item() - expected) <= 1e-4 * expected


def test_d26_the_divergence_is_exact_at_large_concentrations():
    assert is_exact_at_large_concentrations(dirichlet_kl)
    assert not is_exact_at_large_concentrations(lambda a, b: kl_divergence(Dirichlet(a.float()), Dirichlet(b.float())))


def test_d26_float64_alone_is_not_enough():
    """Nearly equal concentrations of 1e13: torch's form in float64 is wrong in its first digit."""
    a = 1e13 * torch.tensor([[1.0, 2.5, 0.4]], dtype=torch.float64)
    b = a * torch.tensor([[1 + 1e-7, 1 - 1e-7, 1 + 1e-7]], dtype=torch.float64)
    expected = float(oracle.kl(a[0].tolist(), b[0].tolist()))
    assert dirichlet_kl(a, b).item() == pytest.approx(expected, rel=1e-6)
    assert kl_divergence(Dirichlet(a), Dirichlet(b)).item() != pytest.approx(expected, rel=0.1)


def modules_import(package):
    try:
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    except ModuleNotFoundError:
        return False
    return True


def test_d34_every_module_of_the_package_imports(tmp_path, monkeypatch):
    assert modules_import(ironclip)
    planted = tmp_path / "planted_package"
    planted.mkdir()
    (planted / "__init__.py").write_text("")
    (planted / "main.py").write_text("from dpn_losses import kl_loss\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert not modules_import(importlib.import_module("planted_package"))


def share_of_zeros(gradient):
    return (gradient == 0).float().mean().item()


def test_d37_the_input_gradient_does_not_vanish_in_low_precision(bench):
    one = bench("ucat", classes=10)
    with torch.no_grad():
        one.model.log_logit_scale.fill_(math.log(400))  # as sure of itself as CLIP is of an easy image
        features = F.normalize(one.model.embed_image(one.batch.pixels), dim=-1)
    batch = type(one.batch)(**(vars(one.batch) | {"labels": (features @ one.batch.class_weights.T).argmax(dim=1)}))
    objective = one.trainer.method.adversaries(batch, one.model, one.trainer.teacher)["image"].objective
    wide, _ = input_gradient(objective, batch.pixels)
    with objective.computing(torch.bfloat16):
        narrow, _ = input_gradient(objective, batch.pixels)
    assert abs(share_of_zeros(narrow) - share_of_zeros(wide)) <= 1e-3
    assert share_of_zeros(wide) <= 1e-3
    half = (wide / len(batch)).half()  # a batch mean without loss scaling, as float16 holds it
    assert share_of_zeros(half) > 0.1
