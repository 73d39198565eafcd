"""Sim-CLIP against its reference values, and what each target pulls towards what."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity

from ironclip.errors import ConfigError, RunFailedError
from ironclip.methods.base import METHODS, Batch, ImageView, Pass, Views
from reference_values import needs_reference_values, reference_inputs, reference_value

TARGETS = ("frozen", "self", "both")


def views_of(adv, clean, teacher):
    batch = Batch([str(row) for row in range(len(adv))], torch.zeros(len(adv), 3, 8, 8))
    passes = {
        Pass.STUDENT_ADV: ImageView(adv, None),
        Pass.STUDENT_CLEAN: ImageView(clean, None),
        Pass.TEACHER_CLEAN: ImageView(teacher, None),
    }
    return Views("sim_clip", batch, passes, torch.tensor(100.0))


def embeddings():
    random = torch.Generator().manual_seed(3)
    return [2 * torch.randn(4, 6, generator=random, dtype=torch.float64) for _ in range(3)]


def total(method, views):
    return sum(method.loss(views).values())


@needs_reference_values
def test_loss_is_that_of_the_reference():
    inputs = reference_inputs("sim_clip_frozen", torch.float64)
    views = views_of(inputs["adv"], inputs["clean"], inputs["teacher_clean"])
    values = {target: reference_value(f"sim_clip_{target}")[0] for target in ("frozen", "self")}
    for target in ("frozen", "self"):
        terms = METHODS.create("sim_clip", {"target": target}).loss(views)
        assert {name: term.item() for name, term in terms.items()} == pytest.approx({target: values[target]}, rel=1e-9)
    both = METHODS.create("sim_clip", {"target": "both"}).loss(views)
    expected = {name: value / 2 for name, value in values.items()}
    assert {name: term.item() for name, term in both.items()} == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("target", "passes"),
    [
        ("frozen", {Pass.STUDENT_ADV, Pass.TEACHER_CLEAN}),
        ("self", {Pass.STUDENT_ADV, Pass.STUDENT_CLEAN}),
        ("both", {Pass.STUDENT_ADV, Pass.STUDENT_CLEAN, Pass.TEACHER_CLEAN}),
    ],
)
def test_reads_the_passes_of_its_targets(target, passes):
    assert METHODS.create("sim_clip", {"target": target}).needs == passes


def test_default_is_what_the_published_code_does():
    assert METHODS.create("sim_clip").target == "frozen"
    with pytest.raises(ConfigError, match=r"method\.target"):
        METHODS.create("sim_clip", {"target": "siamese"})


def test_against_the_frozen_model_half_of_the_cosines_gradient_is_left():
    """D14 as published: the second half has no gradient. The value is that of the whole cosine."""
    adv, clean, teacher = embeddings()
    adv.requires_grad_(True)
    loss = total(METHODS.create("sim_clip"), views_of(adv, clean, teacher))
    plain = -cosine_similarity(adv, teacher).mean()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-12)
    (found,), (whole,) = torch.autograd.grad(loss, adv), torch.autograd.grad(plain, adv)
    torch.testing.assert_close(found, whole / 2)


def test_every_target_is_attacked_away_from_the_frozen_model(bench):
    values = []
    for target in TARGETS:
        one = bench("sim_clip", options={"target": target}, shift=0.02)
        batch = one.batch
        objective = one.trainer.method.adversaries(batch, one.model, one.trainer.teacher)["image"].objective
        teacher = one.trainer.teacher.model.embed_image(batch.pixels)
        distance = (one.model.embed_image(batch.pixels) - teacher).square().sum(dim=1)
        torch.testing.assert_close(objective(batch.pixels), distance)
        values.append(one.step()["loss"])
    assert values[2] == pytest.approx((values[0] + values[1]) / 2, rel=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("target", TARGETS)
def test_without_perturbation_and_tuning_it_is_at_its_best(target, precision, bench):
    logged = bench("sim_clip", options={"target": target}, eps="0", precision=precision, count=16).step()
    assert logged["loss"] == pytest.approx(-1, abs=1e-6)
    assert logged["teacher_cosine"] == pytest.approx(1, abs=1e-6)
    assert logged["gradient_norm"] < 1e-4


def test_reads_neither_labels_nor_texts(bench, monkeypatch):
    one = bench("sim_clip", options={"target": "both"}, labelled=False, shift=0.02)
    monkeypatch.setattr(type(one.model), "embed_text", lambda *_: pytest.fail("Sim-CLIP read a text"))
    assert set(one.step()) == {"lr", "loss", "frozen", "self", "teacher_cosine", "gradient_norm"}


# What is watched


@pytest.mark.parametrize("target", TARGETS)
def test_cosine_of_clean_embeddings_with_the_original_model_is_logged(target, bench):
    one = bench("sim_clip", options={"target": target}, shift=0.02)
    pixels = one.batch.pixels
    with torch.no_grad():
        student, teacher = one.model.embed_image(pixels), one.trainer.teacher.model.embed_image(pixels)
    expected = cosine_similarity(student.double(), teacher.double()).mean().item()
    assert one.step()["teacher_cosine"] == pytest.approx(expected, rel=1e-5)


def test_a_model_that_has_lost_its_direction_ends_the_run(bench):
    one = bench("sim_clip", options={"target": "self"})
    with torch.no_grad():
        one.model.visual.proj.neg_()
    with pytest.raises(
        RunFailedError, match=r"lost those of the original model: mean cosine -1\.00, below 0\.2"
    ) as caught:
        one.step()
    assert "optimisation.lr" in caught.value.remedy
    assert "target: frozen" in caught.value.remedy
    assert one.trainer.progress.step == 0


@pytest.mark.parametrize("target", TARGETS)
def test_loss_above_its_floor_falls_on_one_batch(target, bench):
    """No cosine is better than 1, whatever the target."""
    one = bench("sim_clip", options={"target": target}, shift=0.02)
    above = [one.step()["loss"] + 1 for _ in range(21)]
    assert above[0] > 0.001
    assert above[-1] < 0.9 * above[0], above
