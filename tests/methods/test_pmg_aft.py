"""PMG-AFT against the reference values, loops in float64, and the identities that it must satisfy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ironclip.errors import ConfigError
from ironclip.methods.base import METHODS
from made_up_views import as_lists, made_up_parts, views_of
from oracles import logit_objectives as oracle
from reference_values import TOLERANCES, needs_reference_values, reference_inputs, reference_value

COUNT = 4


def create(**options):
    return METHODS.create("pmg_aft", options)


def terms_by_hand(parts, scale=100.0):
    lists = as_lists(parts)
    names = ("adv", "clean", "teacher_adv", "text", "labels")
    return oracle.pmg_aft(*(lists[name] for name in names), scale)


def numbers(terms):
    return {name: value.item() for name, value in terms.items()}


@needs_reference_values
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("variant", ["paper", "code"])
def test_reference_values(variant, dtype, tolerance):
    name = {"paper": "pmg_aft", "code": "pmg_aft_code"}[variant]
    # The published code loses the logit scale, whatever it is.
    terms = create(variant=variant).loss(views_of("pmg_aft", reference_inputs(name, dtype), 100.0))
    assert list(terms) == ["ce", "general", "clean"]
    assert all(value.dtype == dtype for value in terms.values())
    assert list(numbers(terms).values()) == pytest.approx(reference_value(name), rel=tolerance)


@pytest.mark.parametrize("classes", [2, 3, 10, 200])
def test_terms_equal_the_oracle(classes):
    parts = made_up_parts(COUNT, classes=classes)
    expected = terms_by_hand(parts)
    found = numbers(create(general_weight=0.5, clean_weight=3.0).loss(views_of("pmg_aft", parts)))
    weighted = {"ce": expected["ce"], "general": 0.5 * expected["general"], "clean": 3 * expected["clean"]}
    assert found == pytest.approx(weighted, rel=1e-11)


def test_other_direction_of_the_divergences():
    parts = made_up_parts(COUNT, spread=0.3)
    expected = terms_by_hand(parts)
    found = numbers(create(kl_direction="student_first").loss(views_of("pmg_aft", parts)))
    assert found["general"] == pytest.approx(expected["general_reversed"], rel=1e-11)
    assert found["clean"] == pytest.approx(expected["clean_reversed"], rel=1e-11)
    assert found["general"] != pytest.approx(expected["general"], rel=0.01)


def test_general_feature_is_the_distance_of_the_features_of_attacked_images():
    """The abstract's wording; raw embeddings, as in FARE."""
    parts = made_up_parts(COUNT)
    expected = terms_by_hand(parts)
    found = numbers(create(general="feature", general_weight=2.0).loss(views_of("pmg_aft", parts)))
    assert found["general"] == pytest.approx(2 * expected["feature"], rel=1e-12)
    assert (found["ce"], found["clean"]) == pytest.approx((expected["ce"], expected["clean"]), rel=1e-11)


@pytest.mark.parametrize(
    ("options", "into_clean"),
    [
        ({}, False),
        ({"kl_direction": "student_first"}, False),
        ({"general": "feature"}, False),
        ({"detach_clean": False}, True),
        ({"variant": "code"}, True),
        ({"variant": "code", "detach_clean": True}, False),
    ],
    ids=str,
)
def test_gradients_equal_differences_with_stopped_copies_held(options, into_clean):
    method, scale = create(general_weight=0.7, clean_weight=1.3, **options), 10.0
    parts = made_up_parts(COUNT, spread=0.3)
    leaves = {name: parts[name].clone().requires_grad_() for name in ("adv", "clean", "teacher_adv")}
    total = sum(method.loss(views_of("pmg_aft", parts | leaves, scale)).values())
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
    by_hand = dict(zip(leaves, gradients, strict=True))

    def loss(changed):
        terms = terms_by_hand(parts | changed, 1.0 if method.variant == "code" else scale)
        suffix = "_reversed" if method.kl_direction == "student_first" else ""
        general = terms["feature"] if method.general == "feature" else terms[f"general{suffix}"]
        factor = COUNT if method.variant == "code" else 1
        return terms["ce"] + factor * (0.7 * general + 1.3 * terms[f"clean{suffix}"])

    for name in ("adv", "clean"):
        slopes = torch.zeros_like(parts[name])
        for index in range(slopes.numel()):
            step = torch.zeros_like(slopes).flatten()
            step[index] = 1e-6
            step = step.view_as(slopes)
            ends = loss({name: parts[name] + step}), loss({name: parts[name] - step})
            slopes.view(-1)[index] = (ends[0] - ends[1]) / 2e-6
        if name == "clean" and not into_clean:
            assert (by_hand[name] == 0).all()
            assert slopes.abs().max() > 1e-3
        else:
            np.testing.assert_allclose(by_hand[name], slopes, rtol=1e-6, atol=1e-7)


def attacked_images(one, monkeypatch):
    """Keep what the attack of the next step returns."""
    kept, perturb = [], type(one.trainer.attack).perturb

    def spied(self, *arguments):
        kept.append(perturb(self, *arguments))
        return kept[-1]

    monkeypatch.setattr(type(one.trainer.attack), "perturb", spied)
    return kept


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_terms_of_a_step_are_those_of_its_images(variant, bench, monkeypatch):
    """The teacher sees the images that were just attacked, so its pass is a live one."""
    one, again = (bench("pmg_aft", options={"variant": variant}, shift=0.02) for _ in range(2))
    kept, batch = attacked_images(one, monkeypatch), one.batch
    logged = one.step()
    student, teacher = again.model, again.trainer.teacher.model
    with torch.no_grad():
        parts = {
            "adv": student.embed_image(kept[0]),
            "clean": student.embed_image(batch.pixels),
            "teacher_adv": teacher.embed_image(kept[0]),
            "text": batch.class_weights,
            "labels": batch.labels,
        }
    expected = terms_by_hand(parts, 100.0 if variant == "paper" else 1.0)
    if variant == "code":
        expected["general"], expected["clean"] = (len(batch) * expected[name] for name in ("general", "clean"))
    for name in ("ce", "general", "clean"):
        assert logged[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("general", ["prediction", "feature"])
def test_branches_are_zero_at_the_teacher_without_a_perturbation(general, precision, bench):
    logged = bench("pmg_aft", options={"general": general}, eps="0", precision=precision).step()
    assert logged["general"] == 0
    assert logged["clean"] == 0
    assert logged["ce"] > 0


def test_without_its_branches_it_is_tecoa(bench):
    one, tecoa = bench("pmg_aft", options={"general_weight": 0.0, "clean_weight": 0.0}), bench("tecoa")
    found, expected = one.gradients(), tecoa.gradients()
    for name, gradient in expected.items():
        # Clean and attacked images pass in one batch here, which rounds a little differently.
        assert torch.linalg.vector_norm(found[name] - gradient) <= 1e-4 * torch.linalg.vector_norm(gradient) + 1e-6, (
            name
        )


@pytest.mark.parametrize(("variant", "scale"), [("paper", 100.0), ("code", 1.0)])
def test_inner_problem_is_the_cross_entropy_alone(variant, scale, bench):
    one = bench("pmg_aft", options={"variant": variant}, shift=0.02)
    batch = one.batch
    objective = one.trainer.method.adversaries(batch, one.model, one.trainer.teacher)["image"].objective
    features = F.normalize(one.model.embed_image(batch.pixels).detach().double(), dim=-1)
    logits = scale * features @ batch.class_weights.double().T
    expected = F.cross_entropy(logits, batch.labels, reduction="none")
    torch.testing.assert_close(objective(batch.pixels).detach().double(), expected, rtol=1e-4, atol=1e-4)


def test_published_code_reads_pixels_with_imagenets_statistics(tiny_clip):
    own = tiny_clip().spec.preprocessing
    assert create().preprocessing(own) == own
    changed = create(variant="code").preprocessing(own)
    assert changed == replace(own, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def test_only_the_sums_of_the_published_code_forbid_a_split_batch():
    assert not create().across_batch
    assert create(variant="code").across_batch


@pytest.mark.parametrize("name", ["general_weight", "clean_weight"])
@pytest.mark.parametrize("value", [-0.1, float("inf"), float("nan")])
def test_weights_are_not_negative(name, value):
    with pytest.raises(ConfigError, match=rf"method\.{name} is {value}"):
        create(**{name: value})


@pytest.mark.parametrize("key", ["general", "kl_direction", "variant"])
def test_other_words_are_refused(key):
    with pytest.raises(ConfigError, match=rf"method\.{key}: Input should be"):
        create(**{key: "features"})
