"""TGA-ZSR and Comp-TGA against their reference values, and the engine's passes that they read."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ironclip.errors import ConfigError, DataError
from ironclip.methods.base import METHODS, Batch, ImageView, Pass, Views
from ironclip.models.zero_shot import encode_classes
from oracles import attention_map as oracle
from reference_values import needs_reference_values, reference_inputs, reference_value

NAMES = ("tga_zsr", "comp_tga")
CASES = {
    ("tga_zsr", "paper"): "tga_zsr_maps",
    ("tga_zsr", "code"): "tga_zsr_maps_code",
    ("comp_tga", "paper"): "comp_tga_maps",
}


def views_of(name, tokens, weights, labels, extra=None, side=6):
    """Views of tokens `[B, 1 + P, D]` of the attacked and clean student and the teacher, class token first."""
    batch = Batch(
        [str(row) for row in range(len(labels))], torch.zeros(len(labels), 3, 8, 8), labels, (), weights, extra
    )
    passes = {}
    for view, (model, seen) in zip(
        tokens, (("STUDENT", "ADV"), ("STUDENT", "CLEAN"), ("TEACHER", "CLEAN")), strict=True
    ):
        passes[Pass[f"{model}_{seen}"]] = ImageView(view[:, 0], weights)
        passes[Pass[f"{model}_{seen}_PATCHES"]] = view[:, 1:]
    return Views(name, batch, passes, torch.tensor(100.0, dtype=weights.dtype), side)


@needs_reference_values
@pytest.mark.parametrize(("name", "variant"), CASES)
def test_map_terms_are_those_of_the_reference(name, variant):
    inputs = reference_inputs(CASES[name, variant], torch.float64)
    tokens = [inputs[key] for key in ("tokens_adv", "tokens_clean", "tokens_teacher_clean")]
    if variant == "paper":  # the case has no class tokens, and the maps do not read them
        tokens = [torch.cat([torch.ones_like(t[:, :1]), t], dim=1) for t in tokens]
    weights, labels = F.normalize(inputs["text_of_label"], dim=-1), torch.arange(2)
    extra = {}
    if name == "comp_tga":
        extra["negative"] = F.normalize(inputs["negative_text_of_label"], dim=-1)
    method = METHODS.create(name, {"variant": variant})
    terms = method.loss(views_of(name, tokens, weights, labels, extra, side=6))
    for title, weight, value in zip(
        ("adv_map", "clean_map"), WEIGHTS[name], reference_value(CASES[name, variant]), strict=True
    ):
        assert terms[title].item() == pytest.approx(weight * 224 / 6 * value, rel=1e-9)


WEIGHTS = {"tga_zsr": (0.08, 0.05), "comp_tga": (0.10, 0.07)}


@pytest.mark.parametrize("name", NAMES)
def test_cross_entropy_is_tecoas(name, bench):
    ours, tecoa = bench(name, shift=0.02), bench("tecoa", shift=0.02)
    logged, expected = ours.step(), tecoa.step()
    assert logged["ce"] == pytest.approx(expected["ce"], rel=1e-5)
    assert logged["attack_accuracy"] == expected["attack_accuracy"]
    assert logged["loss"] == pytest.approx(logged["ce"] + logged["adv_map"] + logged["clean_map"], rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_without_map_terms_it_is_tecoa(name, bench):
    ours = bench(name, options={"adv_map_weight": 0.0, "clean_map_weight": 0.0})
    tecoa = bench("tecoa")
    for _ in range(2):
        assert ours.step()["loss"] == pytest.approx(tecoa.step()["loss"], rel=1e-4)


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("name", NAMES)
def test_map_terms_of_a_step_are_those_of_its_images(name, variant, bench, monkeypatch):
    one = bench(name, options={"variant": variant}, shift=0.02, count=3)
    shown, perturb = [], type(one.trainer.attack).perturb
    monkeypatch.setattr(type(one.trainer.attack), "perturb", lambda *a: shown.append(perturb(*a)) or shown[-1])
    student, teacher = bench(name, shift=0.02, count=3).model, one.trainer.teacher.model
    names, _ = one.trainer.prompts
    labels = one.batch.labels.tolist()
    positive = encode_classes(student, names, ["a photo of a {}."]).double().tolist()
    negative = encode_classes(student, names, ["This is not a photo of a {}"]).double().tolist()
    logged = one.step()

    def maps(model, pixels):
        found = []
        with torch.no_grad():
            patches, whole = model.patch_tokens(pixels), model.embed_image(pixels)
        for row, label in enumerate(labels):
            made = []
            for texts in (positive, negative):
                if variant == "paper":
                    scores = oracle.cosines(patches[row].double().tolist(), texts[label])
                else:
                    tokens = torch.cat([whole[row : row + 1], patches[row]]).double().tolist()
                    scores = oracle.scores_over_tokens(tokens, texts[label])
                made.append(oracle.attention_map(scores, 32))
            comp = [p * (1 - n) for p, n in zip(*made, strict=True)]
            found.append(comp if name == "comp_tga" else made[0])
        return found

    original = maps(teacher, one.batch.pixels)
    for title, weight, seen in zip(("adv_map", "clean_map"), WEIGHTS[name], (shown[0], one.batch.pixels), strict=True):
        distances = [oracle.distance(*pair) for pair in zip(maps(student, seen), original, strict=True)]
        assert logged[title] == pytest.approx(weight * 224 / 32 * sum(distances) / 3, rel=1e-3)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("name", NAMES)
def test_maps_are_equal_where_student_and_teacher_are(name, variant, precision, bench):
    logged = bench(name, options={"variant": variant}, eps="0", precision=precision, count=16).step()
    assert logged["adv_map"] == 0
    assert logged["clean_map"] == 0


@pytest.mark.parametrize("side", [32, 224, 448])
def test_map_terms_do_not_hang_on_the_resolution(side):
    """The distance grows with the side of the map; the weights are published for 224."""
    random = torch.Generator().manual_seed(0)
    tokens = [torch.randn(2, 50, 8, generator=random, dtype=torch.float64) for _ in range(3)]
    weights, labels = (
        F.normalize(torch.randn(3, 8, generator=random, dtype=torch.float64), dim=-1),
        torch.tensor([0, 2]),
    )
    at = [METHODS.create("tga_zsr").loss(views_of("tga_zsr", tokens, weights, labels, {}, s)) for s in (side, 224)]
    assert at[0]["adv_map"].item() == pytest.approx(at[1]["adv_map"].item(), rel=0.02)


def test_patches_come_with_the_embedding_in_one_pass(bench, monkeypatch):
    one = bench("tga_zsr", count=6)
    passes, embed = [], type(one.model).embed_with_patches
    monkeypatch.setattr(type(one.model), "embed_with_patches", lambda m, x: passes.append((m, len(x))) or embed(m, x))
    monkeypatch.setattr(type(one.model), "patch_tokens", lambda *_: pytest.fail("a pass of its own for patches"))
    one.step()
    assert passes == [(one.model, 12), (one.trainer.teacher.model, 6)]


def test_negative_prompts_are_encoded_once_a_run(bench, monkeypatch):
    one = bench("comp_tga", classes=3)
    read, embed = [], type(one.model).embed_text
    monkeypatch.setattr(type(one.model), "embed_text", lambda m, texts: read.extend(texts) or embed(m, texts))
    for _ in range(2):
        one.step()
    assert read == [
        f"{words} thing {k}{dot}"
        for words, dot in (("a photo of a", "."), ("This is not a photo of a", ""))
        for k in range(3)
    ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weight", ["adv_map_weight", "clean_map_weight"])
@pytest.mark.parametrize("value", [-0.1, float("inf"), float("nan")])
def test_weights_are_not_negative(name, weight, value):
    with pytest.raises(ConfigError, match=rf"method\.{weight} is {value}"):
        METHODS.create(name, {weight: value})


def test_a_negative_template_has_a_place_for_the_name():
    with pytest.raises(ConfigError, match="not a photo"):
        METHODS.create("comp_tga", {"negative_template": "This is not a photo"})


@pytest.mark.parametrize(("name", "missing"), [("tga_zsr", "labels"), ("comp_tga", "class_weights")])
def test_needs_labels_and_class_names(name, missing, bench):
    one = bench(name)
    batch = Batch(**(vars(one.batch) | {missing: None}))
    with pytest.raises(DataError, match=f'method "{name}" needs labels and class names'):
        one.trainer.method.adversaries(batch, one.model, one.trainer.teacher)


def test_negative_prompts_that_nobody_encoded_are_missed():
    tokens = [torch.randn(2, 5, 6, dtype=torch.float64) for _ in range(3)]
    views = views_of("comp_tga", tokens, torch.eye(6, dtype=torch.float64)[:3], torch.tensor([0, 2]), {})
    with pytest.raises(DataError, match='method "comp_tga" reads class prompts'):
        METHODS.create("comp_tga").loss(views)
