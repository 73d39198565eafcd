"""FARE against float64 by hand, and the identities that it must satisfy."""

from __future__ import annotations

import pytest
import torch

from ironclip.errors import ConfigError
from ironclip.methods.base import METHODS, Batch, ImageView, Pass, Teacher, Views
from ironclip.randomness import SampleRandom


def squared_distance(embedding, target):
    """Mean over rows of the sum over columns, in float64, entry by entry."""
    rows = [
        sum((a - b) ** 2 for a, b in zip(left, right, strict=True))
        for left, right in zip(embedding.double().tolist(), target.double().tolist(), strict=True)
    ]
    return sum(rows) / len(rows)


def embeddings(count=4, width=7):
    random = torch.Generator().manual_seed(2)
    return [5 * torch.randn(count, width, generator=random, dtype=torch.float64) for _ in range(3)]


def views_of(adv, clean, target):
    batch = Batch([str(row) for row in range(len(adv))], torch.zeros(len(adv), 3, 8, 8))
    passes = {
        Pass.STUDENT_ADV: ImageView(adv, None),
        Pass.STUDENT_CLEAN: ImageView(clean, None),
        Pass.TEACHER_CLEAN: ImageView(target, None),
    }
    return Views("fare", batch, passes, torch.tensor(100.0))


def attack(one, **settings):
    """Run the training attack once, outside a step."""
    batch = one.batch
    inner = one.trainer.method.adversaries(batch, one.model, one.trainer.teacher)["image"]
    threat = one.trainer.recipe.build_threat()
    return batch.pixels, one.trainer.attack.perturb(inner.objective, batch.pixels, threat, SampleRandom(0, batch.keys))


def test_loss_is_the_summed_squared_distance_of_raw_embeddings():
    adv, clean, target = embeddings()
    terms = METHODS.create("fare").loss(views_of(adv, clean, target))
    assert set(terms) == {"embedding"}
    assert terms["embedding"].item() == pytest.approx(squared_distance(adv, target), rel=1e-12)
    # Not normalised: twice the embeddings are four times the loss.
    doubled = METHODS.create("fare").loss(views_of(2 * adv, 2 * clean, 2 * target))
    assert doubled["embedding"].item() == pytest.approx(4 * terms["embedding"].item(), rel=1e-12)


@pytest.mark.parametrize("weight", [0.25, 0.9])
def test_clean_weight_shares_the_loss(weight):
    adv, clean, target = embeddings()
    method = METHODS.create("fare", {"clean_weight": weight})
    assert method.needs == {Pass.STUDENT_ADV, Pass.STUDENT_CLEAN, Pass.TEACHER_CLEAN}
    terms = method.loss(views_of(adv, clean, target))
    assert terms["embedding"].item() == pytest.approx((1 - weight) * squared_distance(adv, target), rel=1e-12)
    assert terms["clean"].item() == pytest.approx(weight * squared_distance(clean, target), rel=1e-12)


def test_clean_images_are_not_passed_without_a_clean_term(bench, monkeypatch):
    """The published code computes this pass and throws it away."""
    one = bench("fare", count=6)
    rows, embed = [], type(one.model).embed_image
    monkeypatch.setattr(
        type(one.model), "embed_image", lambda self, pixels: rows.append((self, len(pixels))) or embed(self, pixels)
    )
    one.step()
    assert [count for model, count in rows if model is one.model] == [6] * 3  # two attack steps, one loss
    assert [count for model, count in rows if model is one.trainer.teacher.model] == [6]


@pytest.mark.parametrize("weight", [-0.1, 1, 2.0])
def test_clean_weight_is_a_share(weight):
    with pytest.raises(ConfigError, match=rf"method\.clean_weight is {float(weight)}"):
        METHODS.create("fare", {"clean_weight": weight})


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_is_zero_at_the_teacher_without_a_perturbation(weight, precision, bench):
    one = bench("fare", options={"clean_weight": weight}, count=16, eps="0", precision=precision)
    assert one.step()["loss"] == 0.0


def test_attack_moves_where_student_and_teacher_agree(bench):
    """D19: at x itself the distance has its minimum and no gradient; a random start gets away from there."""
    pixels, found = attack(bench("fare"))
    moved = (found - pixels).abs().amax(dim=(1, 2, 3))
    assert (moved > 4 / 255).all()
    stuck = {"name": "pgd_m", "steps": 2, "step_size": "4/255", "start_at": "zero"}
    pixels, found = attack(bench("fare", attack=stuck))
    assert torch.equal(found, pixels)


def test_attack_increases_the_distance(bench):
    one = bench("fare", attack={"name": "pgd_m", "steps": 5, "step_size": "2/255"})
    objective = one.trainer.method.adversaries(one.batch, one.model, one.trainer.teacher)["image"].objective
    pixels, found = attack(one)
    start = one.trainer.recipe.build_threat().random_start(pixels, SampleRandom(0, one.batch.keys, "|0"))
    assert (objective(found) > objective(start)).all()


def test_inner_problem_is_the_distance_to_the_teachers_clean_embedding(bench):
    one = bench("fare", shift=0.02)
    batch = one.batch
    objective = one.trainer.method.adversaries(batch, one.model, one.trainer.teacher)["image"].objective
    other = torch.flip(batch.pixels, dims=(3,))
    student = one.model.embed_image(other).detach()
    target = one.trainer.teacher.model.embed_image(batch.pixels)
    assert objective(other).mean().item() == pytest.approx(squared_distance(student, target), rel=1e-5)


def test_loss_of_a_step_is_the_distance_to_the_frozen_start(bench):
    one = bench("fare", shift=0.02, eps="0")
    target = one.trainer.teacher.model.embed_image(one.batch.pixels)
    for _ in range(3):
        student = one.model.embed_image(one.batch.pixels).detach()
        assert one.step()["loss"] == pytest.approx(squared_distance(student, target), rel=1e-4)


def test_reads_neither_labels_nor_texts(bench, monkeypatch):
    with_labels = bench("fare", shift=0.02).step()
    one = bench("fare", labelled=False, shift=0.02)
    monkeypatch.setattr(type(one.model), "embed_text", lambda *_: pytest.fail("FARE read a text"))
    logged = one.step()
    assert set(logged) == {"lr", "loss", "embedding", "gradient_norm"}
    assert logged["loss"] == with_labels["loss"]


def test_teacher_computes_a_batch_once(bench, monkeypatch):
    one = bench("fare")
    calls, embed = [], type(one.model).embed_image
    monkeypatch.setattr(type(one.model), "embed_image", lambda self, pixels: calls.append(self) or embed(self, pixels))
    teacher, batch = one.trainer.teacher, one.batch
    first = teacher.embedding(batch)
    assert torch.equal(teacher.embedding(batch), first)
    assert len(calls) == 1
    assert not first.requires_grad
    other = one.trainer._batch([*one.samples[6:], *one.samples[:6]])
    assert not torch.equal(teacher.embedding(other), first)


def test_teacher_is_frozen(tiny_clip):
    model = tiny_clip().train()
    teacher = Teacher(model)
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
