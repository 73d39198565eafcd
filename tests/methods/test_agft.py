"""AGFT against the reference values, loops in float64, and the identities that it must satisfy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ironclip.errors import ConfigError, DataError
from ironclip.methods.base import METHODS, Batch, ImageView, Pass, Views
from ironclip.randomness import SampleRandom
from made_up_views import as_lists, made_up_parts, views_of
from oracles import logit_objectives as oracle
from reference_values import TOLERANCES, needs_reference_values, reference_inputs, reference_value


def create(**options):
    return METHODS.create("agft", options)


def loss_by_hand(parts, scale, calibration):
    lists = as_lists(parts)
    return oracle.agft(lists["adv"], lists["teacher_clean"], lists["text"], scale, calibration)


@needs_reference_values
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("calibration", [0.4, 1])
def test_reference_values(calibration, dtype, tolerance):
    name = f"agft_gamma_{calibration}"
    terms = create(calibration=float(calibration)).loss(views_of("agft", reference_inputs(name, dtype)))
    assert list(terms) == ["soft_ce"]
    assert terms["soft_ce"].dtype == dtype
    assert terms["soft_ce"].item() == pytest.approx(reference_value(name)[0], rel=tolerance)


def of_cosines(adv, clean):
    """Views of one image whose cosines with three classes are these: the fourth axis takes what is left of a row."""

    def embedding(cosines):
        return 2.5 * torch.tensor([[*cosines, math.sqrt(1 - sum(c * c for c in cosines))]], dtype=torch.float64)

    axes = torch.eye(4, dtype=torch.float64)[:3]
    batch = Batch(["0"], torch.zeros(1, 3, 8, 8), torch.tensor([0]), (), axes)
    passes = {
        Pass.STUDENT_ADV: ImageView(embedding(adv), axes),
        Pass.TEACHER_CLEAN: ImageView(embedding(clean), axes),
    }
    return Views("agft", batch, passes, torch.tensor(100.0, dtype=torch.float64))


def test_golden_values():
    views = of_cosines((0.22, 0.26, 0.21), (0.30, 0.25, 0.20))
    target = create()._target(views.teacher.clean, torch.tensor(180.0))
    assert target[0].tolist() == pytest.approx((0.97269612, 0.02657768, 0.00072620), rel=1e-5)
    assert create().loss(views)["soft_ce"].item() == pytest.approx(7.01081749, rel=1e-8)


@pytest.mark.parametrize("classes", [2, 3, 10, 200])
@pytest.mark.parametrize(("relative_scale", "calibration"), [(1.8, 0.4), (1.0, 1.0), (0.05, 2.0)])
def test_loss_equals_the_oracle(relative_scale, calibration, classes):
    parts = made_up_parts(classes=classes)
    method = create(relative_scale=relative_scale, calibration=calibration)
    expected = loss_by_hand(parts, 100 * relative_scale, calibration)
    assert method.loss(views_of("agft", parts))["soft_ce"].item() == pytest.approx(expected, rel=1e-11)


def test_without_calibration_at_the_models_own_scale_the_target_is_the_originals_prediction():
    parts = made_up_parts()
    views = views_of("agft", parts)
    target = create(relative_scale=1.0, calibration=1.0)._target(views.teacher.clean, views.logit_scale)
    torch.testing.assert_close(target, torch.softmax(100 * views.teacher.clean.similarity, dim=1))


def test_gradient_equals_differences_and_none_reaches_the_target():
    parts, scale = made_up_parts(spread=0.3), 5.0
    adv, clean = (parts[name].clone().requires_grad_() for name in ("adv", "teacher_clean"))
    loss = create().loss(views_of("agft", parts | {"adv": adv, "teacher_clean": clean}, scale))["soft_ce"]
    gradient, none = torch.autograd.grad(loss, (adv, clean), allow_unused=True)
    assert none is None
    slopes = torch.zeros_like(gradient)
    for index in range(slopes.numel()):
        step = torch.zeros(slopes.numel(), dtype=torch.float64)
        step[index] = 1e-6
        step = step.view_as(slopes)
        ends = [loss_by_hand(parts | {"adv": parts["adv"] + sign * step}, 1.8 * scale, 0.4) for sign in (1, -1)]
        slopes.view(-1)[index] = (ends[0] - ends[1]) / 2e-6
    np.testing.assert_allclose(gradient, slopes, rtol=1e-6, atol=1e-8)


def test_gradient_is_that_of_the_divergence_from_the_target():
    """Soft cross-entropy and KL(target || prediction) differ by the entropy of the target."""
    parts = made_up_parts(spread=0.3)
    found = []
    for kind in ("soft cross-entropy", "divergence"):
        leaf = parts["adv"].clone().requires_grad_()
        views = views_of("agft", parts | {"adv": leaf})
        if kind == "soft cross-entropy":
            loss = create().loss(views)["soft_ce"]
        else:
            target = create()._target(views.teacher.clean, torch.tensor(180.0))
            loss = F.kl_div(F.log_softmax(180 * views.student.adv.similarity, 1), target, reduction="batchmean")
        found.append(torch.autograd.grad(loss, leaf)[0])
    torch.testing.assert_close(*found)


def attack(one):
    """Run the training attack once, outside a step."""
    batch = one.batch
    objective = one.trainer.method.adversaries(batch, one.model, one.trainer.teacher)["image"].objective
    random, threat = SampleRandom(0, batch.keys), one.trainer.recipe.build_threat()
    return objective, one.trainer.attack.perturb(objective, batch.pixels, threat, random)


@pytest.mark.parametrize("options", [{}, {"relative_scale": 0.2, "calibration": 1.5}])
def test_inner_problem_is_the_loss_itself(options, bench):
    one = bench("agft", options=options, shift=0.02)
    method, batch, teacher = one.trainer.method, one.batch, one.trainer.teacher
    objective, attacked = attack(one)
    with torch.no_grad():
        parts = {
            "adv": one.model.embed_image(attacked),
            "teacher_clean": teacher.model.embed_image(batch.pixels),
            "text": batch.class_weights,
        }
        inner = objective(attacked).mean().item()
    expected = loss_by_hand(parts, 100 * method.relative_scale, method.calibration)
    assert inner == pytest.approx(expected, rel=1e-4)
    views = views_of("agft", parts | {"clean": parts["adv"], "teacher_adv": parts["adv"], "labels": batch.labels})
    assert method.loss(views)["soft_ce"].item() == pytest.approx(expected, rel=1e-4)


def test_labels_are_not_read(bench):
    one, other = bench("agft", shift=0.02), bench("agft", shift=0.02)
    other.samples = [replace(sample, label=(sample.label + 1) % 3) for sample in other.samples]
    assert one.step()["loss"] == other.step()["loss"]


def test_a_sure_target_makes_it_tecoa_on_what_the_original_says():
    method, parts = create(relative_scale=1.0, calibration=1e6), made_up_parts()
    views = views_of("agft", parts)
    labels = views.teacher.clean.similarity.argmax(dim=1)
    expected = METHODS.create("tecoa").loss(views_of("tecoa", parts | {"labels": labels}))["ce"]
    assert method.loss(views)["soft_ce"].item() == pytest.approx(expected.item(), rel=1e-12)


def test_needs_class_names(bench):
    with pytest.raises(DataError, match='method "agft" needs class names'):
        bench("agft", labelled=False).step()


@pytest.mark.parametrize("name", ["relative_scale", "calibration"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_factors_are_positive(name, value):
    with pytest.raises(ConfigError, match=rf"method\.{name} is {value}"):
        create(**{name: value})
