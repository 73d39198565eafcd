"""TeCoA against float64 by hand, the golden value of the methods plan, and the identities that it must satisfy."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ironclip.errors import DataError
from ironclip.methods.base import METHODS, Batch, ImageView, Pass, Views
from ironclip.models.clip import CLIPModel


def views_of(embedding, weights, labels, scale=100.0):
    count = len(embedding)
    batch = Batch([str(row) for row in range(count)], torch.zeros(count, 3, 8, 8), labels, (), weights)
    return Views("tecoa", batch, {Pass.STUDENT_ADV: ImageView(embedding, weights)}, torch.tensor(scale))


def attacked_images(one, monkeypatch):
    """Keep what the attack of the next step returns."""
    kept, perturb = [], type(one.trainer.attack).perturb

    def spied(self, *arguments):
        kept.append(perturb(self, *arguments))
        return kept[-1]

    monkeypatch.setattr(type(one.trainer.attack), "perturb", spied)
    return kept


def cross_entropy(logits, labels):
    """By row, float64, from the definition."""
    values = []
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        top = max(row)
        values.append(top + math.log(math.fsum(math.exp(z - top) for z in row)) - row[label])
    return values


def test_golden_value():
    cosines = [0.22, 0.26, 0.21]
    # Classes along three axes: the fourth takes what is left of a unit row, here of length 2.5.
    embedding = 2.5 * torch.tensor([[*cosines, math.sqrt(1 - sum(c * c for c in cosines))]], dtype=torch.float64)
    weights = torch.eye(4, dtype=torch.float64)[:3]
    loss = METHODS.create("tecoa").loss(views_of(embedding, weights, torch.tensor([0])))["ce"]
    assert loss.item() == pytest.approx(4.02474489, rel=1e-8)


def test_logits_of_a_perfect_match_are_the_logit_scale(bench):
    """D5: features are normalised once, and the scale is not lost."""
    one = bench("tecoa")
    weights = one.batch.class_weights
    view = ImageView(3.7 * weights, weights)
    logits = one.model.logit_scale * view.similarity
    torch.testing.assert_close(logits.diag(), torch.full((3,), 100.0), atol=1e-3, rtol=0)
    scores = METHODS.create("tecoa").loss(views_of(3.7 * weights, weights, torch.arange(3)))
    expected = sum(cross_entropy(100 * (weights @ weights.T), torch.arange(3))) / 3
    assert scores["ce"].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_loss_of_a_step_is_the_cross_entropy_of_the_attacked_images(bench, monkeypatch):
    one = bench("tecoa")
    kept = attacked_images(one, monkeypatch)
    batch = one.batch
    before = {name: tensor.clone() for name, tensor in one.model.clip.state_dict().items()}
    logged = one.step()
    one.model.clip.load_state_dict(before)
    embedding = one.model.embed_image(kept[0]).detach().double()
    logits = 100 * F.normalize(embedding, dim=-1) @ batch.class_weights.double().T
    expected = cross_entropy(logits, batch.labels)
    assert logged["loss"] == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    right = (logits.argmax(dim=1) == batch.labels).double().mean().item()
    assert logged["attack_accuracy"] == pytest.approx(right)


def test_gradient_is_that_of_the_loss_on_fixed_attacked_images(bench, monkeypatch):
    """D3: what the attack differentiated on its way is not in the update."""
    one = bench("tecoa")
    kept = attacked_images(one, monkeypatch)
    batch = one.batch
    again = bench("tecoa")  # the same weights, before any step
    gradients = one.gradients()
    features = F.normalize(again.model.embed_image(kept[0]), dim=-1)
    log_probs = torch.log_softmax(100 * features @ batch.class_weights.T, dim=1)
    loss = -log_probs[torch.arange(len(log_probs)), batch.labels].mean()
    expected = torch.autograd.grad(loss, list(again.trainer.parameters.values()))
    for (name, found), wanted in zip(gradients.items(), expected, strict=True):
        assert torch.linalg.vector_norm(found - wanted) <= 1e-4 * torch.linalg.vector_norm(wanted) + 1e-7, name


def test_inner_problem_is_the_same_cross_entropy(bench):
    one = bench("tecoa")
    batch = one.batch
    objective = one.trainer.method.adversaries(batch, one.model, one.trainer.teacher)["image"].objective
    logits = 100 * one.model.image_features(batch.pixels).detach() @ batch.class_weights.T
    torch.testing.assert_close(
        objective(batch.pixels).detach().double(),
        torch.tensor(cross_entropy(logits, batch.labels), dtype=torch.float64),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_without_a_perturbation_it_is_clean_tuning(precision, bench):
    tecoa, clean = bench("tecoa", eps="0", precision=precision), bench("clean", eps="0", precision=precision)
    for _ in range(3):
        assert tecoa.step()["loss"] == clean.step()["loss"]
    for name, parameter in tecoa.trainer.parameters.items():
        assert torch.equal(parameter, clean.trainer.parameters[name]), name


def test_texts_are_encoded_once_a_run(bench, monkeypatch):
    calls, embed_text = [], CLIPModel.embed_text
    monkeypatch.setattr(CLIPModel, "embed_text", lambda self, texts: calls.append(1) or embed_text(self, texts))
    one = bench("tecoa")
    for _ in range(3):
        one.step()
    assert len(calls) == 1


@pytest.mark.parametrize("without", ["labels", "class_weights"])
def test_needs_labels_and_class_names(without, bench):
    one = bench("tecoa")
    parts = vars(one.batch) | {without: None}
    with pytest.raises(DataError, match='method "tecoa" needs labels and class names') as caught:
        one.trainer.method.adversaries(Batch(**parts), one.model, one.trainer.teacher)
    assert "fare" in caught.value.remedy
