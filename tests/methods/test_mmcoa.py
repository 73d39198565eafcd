"""MMCoA against reference values and loops over floats, and its two adversaries."""

from __future__ import annotations

import math

import pytest
import torch

from ironclip.attacks.text.characters import SingleEdit
from ironclip.attacks.text.objectives import TextDistance
from ironclip.attacks.text.words import Synonyms
from ironclip.errors import ConfigError
from ironclip.methods.base import METHODS, Batch, ImageView, Pass, TextView, Views
from ironclip.training.validation import HeldOut
from oracles import mmcoa as oracle
from reference_values import TOLERANCES, needs_reference_values, reference_inputs, reference_value

LABELS = {"arange": [0, 1, 2, 3], "multi_positive": [0, 1, 1, 2]}


def views_of(image, image_adv, text, text_adv, scale, labels):
    batch = Batch([str(row) for row in range(len(image))], torch.zeros(len(image), 3, 8, 8), torch.tensor(labels))
    passes = {
        Pass.STUDENT_CLEAN: ImageView(image, None),
        Pass.STUDENT_ADV: ImageView(image_adv, None),
        Pass.STUDENT_TEXT: TextView(text),
        Pass.STUDENT_TEXT_ADV: TextView(text_adv),
    }
    return Views("mmcoa", batch, passes, torch.as_tensor(scale))


def parts(count=4, width=5):
    random = torch.Generator().manual_seed(1)
    return list(torch.randn(4, count, width, generator=random, dtype=torch.float64))


@needs_reference_values
@pytest.mark.parametrize("targets", LABELS)
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_loss_equals_the_reference(targets, dtype, tolerance):
    inputs = reference_inputs(f"mmcoa_{targets}", dtype)
    method = METHODS.create("mmcoa", {"multi_positive": targets == "multi_positive"})
    four = [inputs[name] for name in ("image", "image_adv", "text", "text_adv")]
    terms = method.loss(views_of(*four, inputs["logit_scale"].to(dtype), LABELS[targets]))
    assert set(terms) == {"image", "text"}
    assert sum(terms.values()).item() == pytest.approx(reference_value(f"mmcoa_{targets}")[0], rel=tolerance)


@pytest.mark.parametrize("multi_positive", [False, True])
def test_each_half_equals_the_oracle(multi_positive):
    four, labels = parts(), [0, 1, 1, 0]
    options = {"image_weight": 0.7, "text_weight": 0.2, "multi_positive": multi_positive}
    terms = METHODS.create("mmcoa", options).loss(views_of(*four, 9.0, labels))
    right = [[float(a == b if multi_positive else i == j) for j, b in enumerate(labels)] for i, a in enumerate(labels)]
    expected = oracle.mmcoa(*(one.tolist() for one in four), 9.0, right, 0.7, 0.2)
    assert (terms["image"].item(), terms["text"].item()) == pytest.approx(expected, rel=1e-12)


def test_images_of_one_class_are_each_others_negatives_unless_they_are_positives():
    """Two items with equal prompts, perfectly aligned: ln 2 in each of four directions as published, weighted."""
    axes = torch.eye(4, dtype=torch.float64)[[0, 0]]
    views = views_of(axes, axes, axes, axes, 100.0, [3, 3])
    published = sum(METHODS.create("mmcoa").loss(views).values()).item()
    assert published == pytest.approx(2 * math.log(2), rel=1e-12)
    shared = sum(METHODS.create("mmcoa", {"multi_positive": True}).loss(views).values()).item()
    assert shared == pytest.approx(2 * math.log(2), rel=1e-12)
    apart = torch.eye(4, dtype=torch.float64)[[0, 1]]
    swapped = views_of(apart, apart, apart.flip(0), apart.flip(0), 100.0, [3, 3])
    assert sum(METHODS.create("mmcoa").loss(swapped).values()).item() == pytest.approx(200, rel=1e-6)
    assert sum(METHODS.create("mmcoa", {"multi_positive": True}).loss(swapped).values()).item() == pytest.approx(100)


@pytest.mark.parametrize(
    ("options", "needs", "kinds"),
    [
        ({}, {Pass.STUDENT_ADV, Pass.STUDENT_TEXT, Pass.STUDENT_CLEAN, Pass.STUDENT_TEXT_ADV}, {"image", "text"}),
        ({"text_weight": 0.0}, {Pass.STUDENT_ADV, Pass.STUDENT_TEXT}, {"image"}),
        ({"image_weight": 0.0}, {Pass.STUDENT_CLEAN, Pass.STUDENT_TEXT_ADV}, {"text"}),
    ],
)
def test_a_half_without_weight_is_left_out_with_its_adversary(options, needs, kinds, bench):
    one = bench("mmcoa", options=options, shift=0.02, count=6)
    method = one.trainer.method
    assert method.needs == needs
    assert set(method.adversaries(one.batch, one.model, one.trainer.teacher)) == kinds
    logged = one.step()
    assert kinds == set(logged) & {"image", "text"}
    assert math.isfinite(logged["loss"])


def test_the_text_adversary_starts_from_the_models_own_clean_text(bench):
    one = bench("mmcoa", shift=0.02, count=4)
    objective = one.trainer.method.adversaries(one.batch, one.model, one.trainer.teacher)["text"].objective
    assert isinstance(objective, TextDistance)
    assert objective.measure == "kl_softmax"
    assert not objective.target.requires_grad
    torch.testing.assert_close(objective.target, one.model.embed_text(one.batch.texts).detach())
    assert isinstance(one.trainer.recipe.build_text_attack(), Synonyms)


def test_a_step_aligns_what_the_attacks_left(bench, monkeypatch):
    """The loss of a step is that of the attacked images and texts, each with the clean other side."""
    one = bench("mmcoa", shift=0.02, count=5, attack={"name": "pgd_m", "steps": 2, "step_size": "4/255"})
    kept, batch = {}, one.batch
    for kind, attack in (("image", one.trainer.attack), ("text", one.trainer.recipe.build_text_attack())):
        own = type(attack).perturb

        def spied(self, *arguments, own=own, kind=kind):
            kept[kind] = own(self, *arguments)
            return kept[kind]

        monkeypatch.setattr(type(attack), "perturb", spied)
    with torch.no_grad():
        clean = [one.model.embed_image(batch.pixels), one.model.embed_text(batch.texts)]
    model_before = {name: tensor.clone() for name, tensor in one.model.clip.state_dict().items()}
    loss = one.step()["loss"]
    one.model.clip.load_state_dict(model_before)
    assert not torch.equal(kept["image"], batch.pixels)
    assert kept["text"] != list(batch.texts)
    with torch.no_grad():
        four = [clean[0], one.model.embed_image(kept["image"]), clean[1], one.model.embed_text(kept["text"])]
    eye = torch.eye(5).tolist()
    expected = sum(oracle.mmcoa(*(part.double().tolist() for part in four), 100.0, eye, 0.5, 0.5))
    assert loss == pytest.approx(expected, rel=1e-4)


def test_another_text_attack_can_be_named(bench):
    one = bench("mmcoa", shift=0.02, count=3, text_attack={"name": "single_edit"})
    assert isinstance(one.trainer.recipe.build_text_attack(), SingleEdit)


@pytest.mark.parametrize("name", ["image_weight", "text_weight"])
@pytest.mark.parametrize("weight", [-0.5, float("inf")])
def test_weights_are_checked(name, weight):
    with pytest.raises(ConfigError, match=rf"method\.{name} is {weight}"):
        METHODS.create("mmcoa", {name: weight})


def test_one_half_has_to_stay():
    with pytest.raises(ConfigError, match="are both 0"):
        METHODS.create("mmcoa", {"image_weight": 0.0, "text_weight": 0.0})


def update_is_that_of_the_loss(bench, monkeypatch, plant=None):
    """The optimiser sees the gradient of the loss on what the attacks left, and nothing else."""
    one, twin = bench("mmcoa", shift=0.02, count=4), bench("mmcoa", shift=0.02, count=4)
    own, kept = type(one.trainer.attack).perturb, []

    def spied(self, *arguments):
        kept.append((plant or own)(self, *arguments))
        return kept[-1]

    with monkeypatch.context() as patch:
        patch.setattr(type(one.trainer.attack), "perturb", spied)
        found = one.gradients()
    batch, parameters, method = twin.batch, twin.trainer.parameters, twin.trainer.method
    inner = method.adversaries(batch, twin.model, twin.trainer.teacher)
    texts = twin.trainer._attacked_texts(batch, inner, "train|0")
    passes = twin.trainer._passes(batch, kept[0], texts)
    terms = method.loss(Views("mmcoa", batch, passes, twin.model.logit_scale.detach()))
    expected = torch.autograd.grad(sum(terms.values()), list(parameters.values()))
    return all(
        torch.linalg.vector_norm(found[name] - gradient) <= 1e-3 * torch.linalg.vector_norm(gradient) + 1e-6
        for name, gradient in zip(parameters, expected, strict=True)
    )


def test_d03_gradients_of_the_attack_do_not_reach_the_update(bench, monkeypatch):
    assert update_is_that_of_the_loss(bench, monkeypatch)

    def by_a_backward_pass(self, objective, pixels, threat, random):
        point = threat.random_start(pixels, random).requires_grad_(True)
        objective(point).mean().backward()
        return threat.project(point.detach() + threat.steepest_ascent(point.grad), pixels)

    assert not update_is_that_of_the_loss(bench, monkeypatch, by_a_backward_pass)


def test_texts_of_held_out_images_are_not_attacked(bench, monkeypatch):
    """The validation attacks images; the text adversary would spend its time for nothing."""
    one = bench("mmcoa", shift=0.02, count=4)
    batch = one.batch
    held_out = HeldOut(batch.keys, batch.pixels, batch.labels, one.trainer.teacher.embedding(batch))
    monkeypatch.setattr(Synonyms, "perturb", lambda *_: pytest.fail("texts were attacked"))
    found = one.trainer._attack_held_out(held_out)
    assert one.trainer.recipe.build_threat().contains(found, batch.pixels).all()
    assert not torch.equal(found, batch.pixels)
