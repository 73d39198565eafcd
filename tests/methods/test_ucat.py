"""UCAT against the reference values, sixty digits, and the identities that it must satisfy."""

from __future__ import annotations

import math

import pytest
import torch
from mpmath import mp, mpf

from ironclip.errors import ConfigError
from ironclip.methods.base import METHODS, Batch, ImageView, Pass, Views
from made_up_views import as_lists, made_up_parts, views_of
from oracles import dirichlet
from oracles import logit_objectives as oracle
from reference_values import TOLERANCES, needs_reference_values, reference_inputs, reference_value

LAMBDA = 1e5 / (1 + math.exp(2 / 0.07))


def create(**options):
    return METHODS.create("ucat", options)


def by_hand(parts, temperature=0.07, offset=0.0, scale=100.0):
    lists = as_lists(parts)
    names = ("adv", "teacher_clean", "text", "labels")
    return oracle.ucat(*(lists[name] for name in names), scale, temperature, offset)


def numbers(terms):
    return {name: value.item() for name, value in terms.items()}


@needs_reference_values
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_reference_value(dtype, tolerance):
    terms = create().loss(views_of("ucat", reference_inputs("ucat", dtype)))
    assert list(terms) == ["ce", "evidence_kl", "beyond_evidence"]
    assert sum(numbers(terms).values()) == pytest.approx(reference_value("ucat")[0], rel=tolerance)


def test_weight_follows_from_the_temperature():
    assert create().divergence_weight == pytest.approx(3.904687e-8, rel=1e-6)
    assert create(temperature=0.5).divergence_weight == pytest.approx(1e5 / (1 + math.exp(4)))
    assert create(weight=0.25).divergence_weight == 0.25
    assert create(divergence="evidence").divergence_weight == create().divergence_weight
    assert create(divergence="softmax").divergence_weight == 1
    assert create(divergence="softmax", weight=3.0).divergence_weight == 3


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
    return Views("ucat", batch, passes, torch.tensor(100.0, dtype=torch.float64))


def test_golden_values():
    """Of the published code, which adds 1e-6; the evidence is all of it, but for less than a millionth."""
    found = numbers(create(variant="code").loss(of_cosines((0.22, 0.26, 0.21), (0.30, 0.25, 0.20))))
    assert found["ce"] == pytest.approx(4.02474489, rel=1e-8)
    assert found["evidence_kl"] + found["beyond_evidence"] == pytest.approx(1.58195597, rel=1e-8)
    assert abs(found["beyond_evidence"]) < 1e-6 * found["evidence_kl"]


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("temperature", [0.02, 0.07, 1.0])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_terms_equal_the_oracle(classes, temperature, variant):
    parts = made_up_parts(3, classes=classes)
    method = create(temperature=temperature, variant=variant)
    expected = by_hand(parts, temperature, 1e-6 if variant == "code" else 0.0)
    found = numbers(method.loss(views_of("ucat", parts)))
    weight = method.divergence_weight
    assert found["ce"] == pytest.approx(float(expected["ce"]), rel=1e-10)
    assert found["evidence_kl"] == pytest.approx(weight * float(expected["evidence"]), rel=1e-9)
    assert found["evidence_kl"] + found["beyond_evidence"] == pytest.approx(weight * float(expected["kl"]), rel=1e-9)
    beyond = weight * float(expected["kl"] - expected["evidence"])
    assert found["beyond_evidence"] == pytest.approx(beyond, rel=1e-9)


def test_at_a_high_temperature_the_rest_counts():
    found = numbers(create(temperature=1.0).loss(views_of("ucat", made_up_parts())))
    assert found["beyond_evidence"] > 0.05 * found["evidence_kl"]


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "weight": 0.3}, {"divergence": "evidence"}], ids=str)
def test_gradient_equals_differences(options):
    method, parts, scale = create(**options), made_up_parts(2, classes=3, spread=0.3), 10.0
    leaf = parts["adv"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(sum(method.loss(views_of("ucat", parts | {"adv": leaf}, scale)).values()), leaf)
    lists = as_lists(parts)

    def loss(adv):
        rest = (lists["teacher_clean"], lists["text"], lists["labels"], scale, method.temperature, 0.0)
        terms = oracle.ucat(adv, *rest)
        part = "evidence" if method.divergence == "evidence" else "kl"
        return terms["ce"] + method.divergence_weight * terms[part]

    with mp.workdps(dirichlet.DIGITS):
        step = mpf(10) ** -20
        slopes = []
        for row in range(2):
            for column in range(6):
                ends = []
                for sign in (1, -1):
                    adv = [[mpf(value) for value in line] for line in lists["adv"]]
                    adv[row][column] += sign * step
                    ends.append(loss(adv))
                slopes.append(float((ends[0] - ends[1]) / (2 * step)))
    assert gradient.flatten().tolist() == pytest.approx(slopes, rel=1e-8, abs=1e-10 * max(map(abs, slopes)))


def test_no_gradient_reaches_the_original():
    parts = made_up_parts()
    views = views_of("ucat", parts)
    assert not views.teacher.clean.embedding.requires_grad
    assert METHODS.create("ucat").needs == {Pass.STUDENT_ADV, Pass.TEACHER_CLEAN}


@pytest.mark.parametrize("classes", [2, 3, 10, 200])
def test_softmax_ablation_is_the_divergence_of_the_shares(classes):
    parts = made_up_parts(classes=classes)
    lists = as_lists(parts)
    student, original = (oracle.cosines(lists[name], lists["text"]) for name in ("adv", "teacher_clean"))
    rows = [
        oracle.kl([c / 0.07 for c in clean], [c / 0.07 for c in adv])
        for clean, adv in zip(original, student, strict=True)
    ]
    terms = create(divergence="softmax", weight=2.0).loss(views_of("ucat", parts))
    assert list(terms) == ["ce", "softmax_kl"]
    assert terms["softmax_kl"].item() == pytest.approx(2 * oracle.mean(rows), rel=1e-11)
    # Weighted by the original's evidence, it is the evidence part.
    evidence = [sum(math.exp((c + 1) / 0.07) for c in clean) for clean in original]
    terms = create(divergence="evidence").loss(views_of("ucat", parts))
    assert list(terms) == ["ce", "evidence_kl"]
    weighted = [weight * row for weight, row in zip(evidence, rows, strict=True)]
    assert terms["evidence_kl"].item() == pytest.approx(LAMBDA * oracle.mean(weighted), rel=1e-9)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("divergence", ["dirichlet", "softmax", "evidence"])
def test_divergence_is_zero_at_the_teacher_without_a_perturbation(divergence, precision, bench):
    logged = bench("ucat", options={"divergence": divergence}, eps="0", precision=precision).step()
    assert logged["loss"] == logged["ce"]
    assert logged["ce"] > 0


def test_without_its_divergence_it_is_tecoa(bench):
    one, tecoa = bench("ucat", options={"weight": 0.0}), bench("tecoa")
    for _ in range(3):
        assert one.step()["loss"] == tecoa.step()["loss"]
    for name, parameter in one.trainer.parameters.items():
        assert torch.equal(parameter, tecoa.trainer.parameters[name]), name


def test_inner_problem_is_that_of_tecoa(bench):
    one, tecoa = bench("ucat", shift=0.02), bench("tecoa", shift=0.02)
    values = []
    for trainer, batch in ((bench.trainer, bench.batch) for bench in (one, tecoa)):
        problems = trainer.method.adversaries(batch, trainer.model, trainer.teacher)
        values.append(problems["image"].objective(batch.pixels))
    assert torch.equal(*values)


def test_float32_training_has_finite_gradients_at_the_published_temperature(bench):
    one = bench("ucat", shift=0.1)
    for _ in range(3):
        gradients = one.gradients()
        assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert one.trainer.progress.skipped == 0
    assert all(parameter.dtype == torch.float32 for parameter in one.trainer.parameters.values())


@pytest.mark.parametrize("value", [0.0, 0.009, -0.07, float("nan"), float("inf")])
def test_temperature_is_one_at_which_concentrations_are_numbers(value):
    with pytest.raises(ConfigError, match=rf"method\.temperature is {value}"):
        create(temperature=value)
    assert math.isfinite(sum(create(temperature=0.01).loss(views_of("ucat", made_up_parts())).values()))


@pytest.mark.parametrize("value", [-0.1, float("inf"), float("nan")])
def test_weight_is_not_negative(value):
    with pytest.raises(ConfigError, match=rf"method\.weight is {value}"):
        create(weight=value)
