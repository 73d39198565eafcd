"""Defects of published parts that many methods share (methods plan 6): each check fails a planted copy."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import ironclip
from ironclip.attacks.autoattack import attack_list
from ironclip.attacks.base import ATTACKS
from ironclip.attacks.fgsm import FGSM
from ironclip.attacks.threat_model import ThreatModel
from ironclip.data.classes import colliding_names, fill_templates
from ironclip.errors import ConfigError
from ironclip.losses.classification import cross_entropy_loss
from ironclip.methods.base import METHODS
from ironclip.models.interpolation import interpolate
from ironclip.models.preprocessing import CLIP_MEAN, CLIP_STD
from ironclip.randomness import SampleRandom
from made_up_views import made_up_parts, views_of


def compiles(folder):
    try:
        for path in folder.rglob("*.py"):
            compile(path.read_text(encoding="utf-8"), str(path), "exec")
    except SyntaxError:
        return False
    return True


def test_d01_every_module_is_python(tmp_path):
    assert compiles(Path(ironclip.__file__).parent)
    (tmp_path / "finetuning.py").write_text("if a:\n    b\nc\nelif d:\n    e\n")
    assert not compiles(tmp_path)


def reads_the_classes(loss):
    """Other class prompts, another loss."""
    parts = made_up_parts()
    return loss(views_of("clean", parts)) != loss(views_of("clean", parts | {"text": parts["text"].flip(1)}))


def test_d13_logits_compare_images_with_classes():
    assert reads_the_classes(lambda views: METHODS.create("clean").loss(views)["ce"].item())
    # It even has a finite value: there are as many labels as there are numbers in an embedding, or fewer.
    assert not reads_the_classes(lambda views: cross_entropy_loss(views.student.clean.embedding, views.labels).item())


def stays_in_the_box(name, one):
    pixels = one.batch.pixels.round()
    objective = METHODS.create("tecoa").adversaries(one.batch, one.model, one.trainer.teacher)["image"].objective
    found = ATTACKS.create(name).perturb(objective, pixels, ThreatModel(eps="8/255"), SampleRandom(0, one.batch.keys))
    return bool(((found >= 0) & (found <= 1)).all())


@pytest.mark.parametrize("name", ["fgsm", "pgd", "pgd_m"])
def test_d17_attacked_images_stay_in_the_box(name, bench, monkeypatch):
    one = bench("tecoa", count=2)
    assert stays_in_the_box(name, one)
    monkeypatch.setattr(
        ThreatModel, "project", lambda self, x, origin: origin + (x - origin).clamp(-self.radius, self.radius)
    )
    assert not stays_in_the_box(name, one)


OTHER_FORMS = [
    ("fare", {"clean_weight": 0.5}),
    ("pmg_aft", {"general": "feature", "kl_direction": "student_first"}),
    ("ucat", {"divergence": "softmax"}),
    ("clean", {"contrastive": True}),
]


def runs(one):
    try:
        return math.isfinite(one.step()["loss"])
    except TypeError:
        return False


@pytest.mark.parametrize(("name", "options"), OTHER_FORMS)
def test_d20_every_form_of_a_loss_is_given_what_it_reads(name, options, bench, monkeypatch):
    one = bench(name, options=options, shift=0.02)
    assert runs(one)

    def without_texts(self, views):
        return {"clean": cross_entropy_loss(100 * F.linear(views.student.clean.features, None), views.labels)}

    monkeypatch.setattr(type(one.trainer.method), "loss", without_texts)
    monkeypatch.setattr(type(one.trainer.method), "needs", METHODS.create("clean").needs)
    assert not runs(one)


def is_the_standard_list(found):
    """Four attacks under the name of the standard list; their kinds and the order are AutoAttack's."""
    kinds = [member.attack.name for member in found.members]
    return "standard" in found.title and kinds == ["apgd", "apgd_t", "fab_t", "square"]


def test_d21_what_is_called_standard_is_the_whole_list():
    standard = attack_list("standard")
    assert is_the_standard_list(standard)
    assert not is_the_standard_list(replace(standard, members=standard.members[:2]))
    for name in ("rand", "pair", "quick"):
        assert not is_the_standard_list(attack_list(name))


def notices_classes_whose_prompts_are_alike(find):
    """Two synonyms of ImageNet are the same word, two cars differ by what a refined name has lost."""
    names = ["cardigan", "dog", "cardigan", "Audi_TT", "audi tt"]
    return [labels for _, labels in find(names)] == [[0, 2], [3, 4]] and find(["cat", "dog"]) == []


def test_d23_classes_with_equal_names_are_noticed():
    assert notices_classes_whose_prompts_are_alike(colliding_names)
    assert not notices_classes_whose_prompts_are_alike(lambda names: [])  # as published: nobody looks

    def exactly(names):
        return [(name, [i for i, n in enumerate(names) if n == name]) for name in dict.fromkeys(names)]

    assert not notices_classes_whose_prompts_are_alike(lambda names: [e for e in exactly(names) if len(e[1]) > 1])


def ends_are_where_they_belong(between, tiny_clip):
    """Weight 0 is the original, weight 1 the robust model, bit for bit."""
    original, robust = (tiny_clip(seed=seed) for seed in (0, 1))
    found = [between((original.clip, original.spec), (robust.clip, robust.spec), weight)[0] for weight in (0, 1)]
    return all(
        torch.equal(*pair)
        for ours, end in zip(found, (original, robust), strict=True)
        for pair in zip(ours.state_dict().values(), end.clip.state_dict().values(), strict=True)
    )


def test_d31_the_weight_is_that_of_the_robust_model(tiny_clip):
    assert ends_are_where_they_belong(interpolate, tiny_clip)
    assert not ends_are_where_they_belong(lambda first, second, weight: interpolate(second, first, weight), tiny_clip)


def moves_by_eps(found, pixels, eps):
    """A step of FGSM: eps up or down, wherever the box leaves room."""
    inner = (pixels > eps) & (pixels < 1 - eps)
    return bool(((found - pixels)[inner].abs() / eps - 1).abs().max() < 1e-3)


def test_d32_a_perturbation_is_not_rounded_to_half_precision(bench):
    one, eps = bench("tecoa", count=2), 1 / 255
    pixels = one.batch.pixels
    objective = METHODS.create("tecoa").adversaries(one.batch, one.model, one.trainer.teacher)["image"].objective
    with objective.computing(torch.bfloat16):
        found = FGSM().perturb(objective, pixels, ThreatModel(eps="1/255"), SampleRandom(0, one.batch.keys))
    assert found.dtype == torch.float32
    assert moves_by_eps(found, pixels, eps)
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    rounded = ((found - mean) / std).half().float() * std + mean  # as the published tower sees it
    assert not moves_by_eps(rounded, pixels, eps)


def is_a_sentence(prompt):
    return "{" not in prompt and "}" not in prompt and "siamese" in prompt


def test_d33_templates_are_filled():
    template = "a photo of a {}, a type of pet."
    assert all(is_a_sentence(prompt) for prompt in fill_templates("siamese", [template]))
    assert not is_a_sentence(f"{template} siamese.")
    with pytest.raises(ConfigError, match="still holds a brace"):
        fill_templates("siamese", ["a photo of a {}, {name}"])


def is_centred(start, pixels, eps):
    return abs((start - pixels).mean().item()) < 0.02 * eps


def test_d35_the_random_start_goes_both_ways():
    threat, pixels = ThreatModel(eps="8/255"), torch.full((8, 3, 64, 64), 0.5)
    random = SampleRandom(0, [str(row) for row in range(8)])
    assert is_centred(threat.random_start(pixels, random), pixels, threat.radius)
    one_sided = pixels + threat.radius * random.uniform(pixels.shape[1:], 0, 1, "start")
    assert not is_centred(one_sided, pixels, threat.radius)
