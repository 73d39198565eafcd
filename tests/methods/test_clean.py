"""Clean fine-tuning: cross-entropy over all class prompts, no adversary."""

from __future__ import annotations

import math

import pytest
import torch

from ironclip.errors import DataError
from ironclip.methods.base import METHODS, Batch, ImageView, Pass, Views


def cross_entropy(embedding, class_weights, labels, scale):
    """Mean over the batch of -log softmax(scale * cosine) at the label, in float64, row by row."""
    values = []
    for row, label in zip(embedding.double(), labels.tolist(), strict=True):
        logits = [scale * float(row @ weight) / float(row.norm() * weight.norm()) for weight in class_weights.double()]
        top = max(logits)
        values.append(top + math.log(math.fsum(math.exp(z - top) for z in logits)) - logits[label])
    return sum(values) / len(values)


def made_up(count=5, width=6, classes=4, dtype=torch.float64):
    random = torch.Generator().manual_seed(1)
    embedding = 3 * torch.randn(count, width, generator=random, dtype=dtype)
    weights = torch.nn.functional.normalize(torch.randn(classes, width, generator=random, dtype=dtype), dim=-1)
    return embedding, weights, torch.arange(count) % classes


def test_loss_is_the_cross_entropy_over_all_classes():
    embedding, weights, labels = made_up()
    batch = Batch([str(n) for n in range(5)], torch.zeros(5, 3, 8, 8), labels, (), weights)
    views = Views("clean", batch, {Pass.STUDENT_CLEAN: ImageView(embedding, weights)}, torch.tensor(100.0))
    terms = METHODS.create("clean").loss(views)
    assert set(terms) == {"ce"}
    assert terms["ce"].item() == pytest.approx(cross_entropy(embedding, weights, labels, 100), rel=1e-12)


def test_loss_of_a_step_is_that_of_the_images(bench):
    one = bench("clean")
    batch = one.batch
    embedding = one.model.embed_image(batch.pixels).detach()
    expected = cross_entropy(embedding, batch.class_weights, batch.labels, 100)
    assert one.step()["loss"] == pytest.approx(expected, rel=1e-5)


def test_has_no_adversary(bench, monkeypatch):
    one = bench("clean")
    monkeypatch.setattr(type(one.trainer.attack), "perturb", lambda *_: pytest.fail("clean tuning ran an attack"))
    assert one.trainer.method.adversaries(one.batch, one.model, one.trainer.teacher) == {}
    logged = one.step()
    assert "clean_accuracy" in logged
    assert "attack_accuracy" not in logged


def test_needs_labels():
    embedding, weights, _ = made_up()
    batch = Batch([str(n) for n in range(5)], torch.zeros(5, 3, 8, 8), None, (), weights)
    views = Views("clean", batch, {Pass.STUDENT_CLEAN: ImageView(embedding, weights)}, torch.tensor(100.0))
    with pytest.raises(DataError, match='method "clean" needs labels'):
        METHODS.create("clean").loss(views)


def test_needs_class_names():
    embedding, _, labels = made_up()
    batch = Batch([str(n) for n in range(5)], torch.zeros(5, 3, 8, 8), labels)
    views = Views("clean", batch, {Pass.STUDENT_CLEAN: ImageView(embedding, None)}, torch.tensor(100.0))
    with pytest.raises(DataError, match="the data have no class names"):
        METHODS.create("clean").loss(views)
