"""FT-Adv and FT-clean against their reference value and a softmax by hand."""

from __future__ import annotations

import pytest
import torch

from ironclip.errors import DataError
from ironclip.methods.base import METHODS, Batch, ImageView, Pass, Views
from oracles import classification, contrastive
from reference_values import needs_reference_values, reference_inputs, reference_value

METHOD_PASS = [("ft_adv", {}, Pass.STUDENT_ADV), ("clean", {"contrastive": True}, Pass.STUDENT_CLEAN)]


def views_of(name, wanted, embedding, weights, labels, scale=100.0):
    batch = Batch(
        [str(row) for row in range(len(embedding))], torch.zeros(len(embedding), 3, 8, 8), labels, (), weights
    )
    return Views(name, batch, {wanted: ImageView(embedding, weights)}, torch.tensor(scale, dtype=embedding.dtype))


@needs_reference_values
@pytest.mark.parametrize(("name", "options", "wanted"), METHOD_PASS)
def test_loss_is_that_of_the_reference(name, options, wanted):
    inputs = reference_inputs("ft_adv", torch.float64)
    weights = torch.nn.functional.normalize(inputs["text"], dim=-1)
    terms = METHODS.create(name, options).loss(views_of(name, wanted, inputs["adv"], weights, inputs["labels"]))
    assert set(terms) == {"contrastive"}
    assert terms["contrastive"].item() == pytest.approx(reference_value("ft_adv")[0], rel=1e-9)


@pytest.mark.parametrize(("name", "options", "wanted"), METHOD_PASS)
def test_loss_of_a_step_is_that_of_its_images(name, options, wanted, bench, monkeypatch):
    one = bench(name, options=options)
    shown, perturb = [], type(one.trainer.attack).perturb
    monkeypatch.setattr(type(one.trainer.attack), "perturb", lambda *a: shown.append(perturb(*a)) or shown[-1])
    batch = one.batch
    again = bench(name)  # the same weights, before any step
    loss = one.step()["loss"]
    features = again.model.image_features(shown[0] if shown else batch.pixels).detach().double()
    logits = 100 * features @ batch.class_weights.double().T
    assert loss == pytest.approx(contrastive.in_batch(logits.tolist(), batch.labels.tolist()), rel=1e-5)
    assert bool(shown) == (wanted is Pass.STUDENT_ADV)


@pytest.mark.parametrize(("name", "options", "wanted"), METHOD_PASS)
def test_compares_the_samples_of_a_batch(name, options, wanted):
    assert METHODS.create(name, options).across_batch
    assert not METHODS.create("clean").across_batch


def test_attack_maximises_the_cross_entropy_over_all_classes(bench):
    """Not the loss that is minimised: published so."""
    one = bench("ft_adv", classes=10)
    batch = one.batch
    objective = one.trainer.method.adversaries(batch, one.model, one.trainer.teacher)["image"].objective
    logits = (100 * one.model.image_features(batch.pixels).detach() @ batch.class_weights.T).double().tolist()
    expected = [classification.cross_entropy(row, k) for row, k in zip(logits, batch.labels.tolist(), strict=True)]
    assert objective(batch.pixels).detach().tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_without_a_perturbation_it_is_clean_tuning(bench):
    adv, clean = bench("ft_adv", eps="0"), bench("clean", options={"contrastive": True}, eps="0")
    for _ in range(3):
        assert adv.step()["loss"] == clean.step()["loss"]


def test_needs_labels_and_class_names(bench):
    one = bench("ft_adv")
    batch = Batch(**(vars(one.batch) | {"labels": None}))
    with pytest.raises(DataError, match='method "ft_adv" needs labels and class names'):
        one.trainer.method.adversaries(batch, one.model, one.trainer.teacher)
