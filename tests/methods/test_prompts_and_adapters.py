"""The losses of apt, advpt, fap, capt, r_adapter, adv_adapter, and what their settings refuse."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from ironclip.errors import ConfigError
from ironclip.losses.divergence import kl_divergence
from ironclip.methods.advpt import EmbeddingDivergence
from ironclip.methods.base import METHODS, Batch, ImageView, Pass, Views
from ironclip.models.zero_shot import encode_classes
from reference_values import FILE, needs_reference_values


def case(name):
    (found,) = [one for one in json.loads(FILE.read_text())["cases"] if one["name"] == name]
    return found


def loss_of(name, reference, **options):
    """Compute a method's loss on the embeddings of a reference case, in float64."""
    inputs = case(reference)["inputs"]
    text = F.normalize(torch.tensor(inputs["text"], dtype=torch.float64), dim=1)
    views = {Pass.STUDENT_CLEAN: "clean", Pass.STUDENT_ADV: "adv", Pass.TEACHER_CLEAN: "teacher_clean"}
    passes = {
        one: ImageView(torch.tensor(inputs[key], dtype=torch.float64).requires_grad_(), text)
        for one, key in views.items()
    }
    labels = torch.tensor(inputs["labels"])
    batch = Batch(keys=list("abcd"), pixels=torch.zeros(4, 3, 1, 1), labels=labels, class_weights=text)
    method = METHODS.create(name, options)
    scale = torch.tensor(float(inputs["logit_scale"]), dtype=torch.float64)
    terms = method.loss(Views(name, batch, passes, scale))
    return terms, passes, inputs


@needs_reference_values
def test_fap_equals_its_reference_value():
    inputs = case("fap")["inputs"]
    terms, passes, _ = loss_of("fap", "fap", consistency_weight=inputs["lambda"])
    total = sum(terms.values())
    assert total.item() == pytest.approx(float(case("fap")["value"]), rel=1e-9)
    total.backward()
    assert passes[Pass.STUDENT_CLEAN].embedding.grad.abs().max() > 0


@needs_reference_values
def test_capt_equals_its_reference_value():
    inputs = case("capt")["inputs"]
    terms, passes, _ = loss_of("capt", "capt", consistency_weight=inputs["lambda"], original_share=inputs["alpha_cons"])
    assert sum(terms.values()).item() == pytest.approx(float(case("capt")["value"]), rel=1e-9)
    (terms["clean"] + terms["original"]).backward()
    assert passes[Pass.STUDENT_CLEAN].embedding.grad is None
    assert passes[Pass.TEACHER_CLEAN].embedding.grad is None


@needs_reference_values
def test_capts_share_is_the_originals_reliability():
    free, passes, inputs = loss_of("capt", "capt")
    labels = torch.tensor(inputs["labels"])
    original = torch.softmax(inputs["logit_scale"] * passes[Pass.TEACHER_CLEAN].similarity, dim=1)
    share = torch.stack([row[label] for row, label in zip(original, labels, strict=True)]).mean().item()
    fixed, _, _ = loss_of("capt", "capt", original_share=share)
    for name, term in free.items():
        assert term.item() == pytest.approx(fixed[name].item(), rel=1e-9)
    assert METHODS.create("capt").across_batch
    assert not METHODS.create("capt", {"original_share": 0.5}).across_batch


@needs_reference_values
def test_apt_is_tecoas_loss_on_attacked_images():
    terms, _, _ = loss_of("apt", "tecoa")
    assert sum(terms.values()).item() == pytest.approx(float(case("tecoa")["value"]), rel=1e-9)


@needs_reference_values
def test_advpts_inner_problem_equals_its_reference_value():
    inputs = case("advpt_inner")["inputs"]
    clean, adv = (torch.tensor(inputs[name], dtype=torch.float64) for name in ("teacher_clean", "teacher_adv"))
    assert kl_divergence(clean, adv).mean().item() == pytest.approx(float(case("advpt_inner")["value"]), rel=1e-9)

    class Model:
        @staticmethod
        def embed_image(pixels):
            return adv

    found = EmbeddingDivergence(Model(), clean).evaluate(torch.zeros(4, 3, 1, 1))
    torch.testing.assert_close(found.value, kl_divergence(clean, adv))
    assert not found.broken.any()


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("name", ["apt", "advpt", "fap", "capt", "tecoa_vp", "adv_adapter"])
def test_d04_every_step_attacks_in_every_precision(name, precision, bench, monkeypatch):
    one = bench(name, precision=precision)
    calls, perturb = [], type(one.trainer.attack).perturb

    def counting(self, *arguments):
        calls.append(perturb(self, *arguments))
        return calls[-1]

    monkeypatch.setattr(type(one.trainer.attack), "perturb", counting)
    clean = one.batch.pixels
    one.step()
    assert len(calls) == 1
    assert (calls[0] - clean).abs().max() > 0


def test_d33_the_paper_form_leaves_no_brace_in_a_prompt_and_the_code_does(tiny_clip):
    paper, code = tiny_clip(), tiny_clip()
    METHODS.create("fap").attach(paper, ["a photo of a {}, a pet."], seed=0)
    METHODS.create("fap", {"variant": "code"}).attach(code, ["a photo of a {}, a pet."], seed=0)
    assert paper.prompts.words == ("of a ", ", a pet.")
    assert code.prompts.words == ("of a {}, a pet. ", ".")
    for one in (paper, code):
        assert encode_classes(one, ["siamese", "beagle"], ["a {}"]).shape == (2, 16)


def test_d36_another_eps_is_another_attack(bench):
    """Nothing is stored between runs: the attacked embeddings follow eps, and are alike in every epoch."""
    found = []
    for eps in ("8/255", "2/255"):
        one = bench("advpt", eps=eps)
        inner = one.trainer.method.adversaries(one.batch, one.model, one.trainer.teacher)
        found.append(one.trainer._attacked(one.batch, inner, "train"))
    assert not torch.equal(*found)
    one, other = bench("advpt", lr=1e-12), bench("advpt", lr=1e-12)
    assert one.trainer.step(one.samples, epoch=0)["loss"] == other.trainer.step(other.samples, epoch=3)["loss"]
    one, other = bench("apt", lr=1e-12), bench("apt", lr=1e-12)
    assert one.trainer.step(one.samples, epoch=0)["loss"] != other.trainer.step(other.samples, epoch=3)["loss"]


def test_r_adapter_drops_by_epoch_and_key(bench):
    def loss(epoch, **options):
        one = bench("r_adapter", options=options, shift=0.02)
        return one.trainer.step(one.samples, epoch=epoch)["mpm_nce"]

    assert loss(0) == loss(0) != loss(1)
    assert loss(0, drop=0.0) == loss(1, drop=0.0)


def test_adv_adapter_has_the_loss_of_the_method_it_names(bench):
    for objective in ("tecoa", "fare"):
        found, expected = bench("adv_adapter", options={"objective": objective}).step(), bench(objective).step()
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fap", {"consistency_weight": -1.0}, "method.consistency_weight is -1"),
        ("fap", {"depth": 0}, "method.depth is 0"),
        ("capt", {"consistency_weight": -1.0}, "method.consistency_weight is -1"),
        ("capt", {"original_share": 1.5}, "method.original_share is 1.5"),
        ("capt", {"depth": 0}, "method.depth is 0"),
        ("r_adapter", {"drop": 1.0}, "method.drop is 1.0"),
        ("r_adapter", {"decay": -0.1}, "method.decay is -0.1"),
        ("r_adapter", {"smoothing": 1.0}, "method.smoothing is 1.0"),
        ("r_adapter", {"temperature": 0.0}, "method.temperature is 0.0"),
        ("r_adapter", {"test_scale": 0.0}, "method.test_scale is 0.0"),
        ("tecoa_vp", {"frame": 0, "tokens": 0}, "nothing to tune"),
        ("tecoa_vp", {"tokens": -1}, "method.tokens is -1"),
    ],
)
def test_settings_out_of_range_are_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        METHODS.create(name, options)
