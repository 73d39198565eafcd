"""Zero-shot classification against slow loops in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ironclip.data.classes import class_groups
from ironclip.errors import ConfigError, ShapeError, ValueRangeError
from ironclip.models.zero_shot import (
    FixedClasses,
    PythonClassifier,
    ZeroShotClassifier,
    encode_classes,
    zero_shot_logits,
)

NAMES = ["dog", "Great Blue_Heron", "crane", "house", "crane", "ship", "frog", "car", "crane", "cup"]
TEMPLATES = ["a photo of a {}.", "a drawing of the {}."]


def unit_rows(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def cosines_by_hand(features: Tensor, weights: Tensor) -> list[list[float]]:
    """Sum products one at a time, in Python's float64."""
    table = []
    for row, feature in enumerate(features.tolist()):
        classes = (weights[row] if weights.ndim == 3 else weights).tolist()
        table.append([sum(a * b for a, b in zip(feature, one, strict=True)) for one in classes])
    return table


@pytest.mark.parametrize("shape", [(7, 16), (5, 7, 16), (1, 16)], ids=["C D", "B C D", "one class"])
def test_logits_are_the_scale_times_the_cosine(shape):
    features, weights = unit_rows(5, 16), unit_rows(*shape, seed=1)
    expected = 100 * torch.tensor(cosines_by_hand(features, weights))
    logits = zero_shot_logits(features, weights, logit_scale=100.0)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    exact = zero_shot_logits(features.double(), weights, logit_scale=torch.tensor(100.0))
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact, expected.double(), rtol=0, atol=1e-4)


def test_a_perfect_match_scores_the_logit_scale(tiny_clip, pixels):
    """D5: published code lost the scale by normalising texts that were scaled already."""
    model = tiny_clip()
    features = model.image_features(pixels)
    logits = FixedClasses(model, features.detach()).logits(pixels)
    assert (logits.diagonal() - 100).abs().max() < 1e-3
    assert logits.max() < 100 + 1e-3


def test_rows_that_are_not_of_unit_length_are_refused(tiny_clip):
    raw = 3 * unit_rows(4, 16)
    raw[1] *= 2
    with pytest.raises(ValueRangeError, match=r"lengths from 3 to 6, expected 1.\n.*text_features"):
        zero_shot_logits(unit_rows(2, 16), raw, logit_scale=100)
    with pytest.raises(ValueRangeError, match="expected 1"):
        FixedClasses(tiny_clip(), raw)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match="width 8 for image features of width 16"):
        zero_shot_logits(unit_rows(2, 16), unit_rows(4, 8), logit_scale=100)
    with pytest.raises(ShapeError, match="3 class matrices for 2 images"):
        zero_shot_logits(unit_rows(2, 16), unit_rows(3, 4, 16), logit_scale=100)


def test_class_weights_are_renormalised_means_of_unit_features(tiny_clip):
    model = tiny_clip()
    weights = encode_classes(model, NAMES, TEMPLATES)
    for row, name in enumerate(NAMES):
        embeddings = [model.embed_text([template.replace("{}", name)])[0].double() for template in TEMPLATES]
        mean = sum(embedding / embedding.norm() for embedding in embeddings) / len(TEMPLATES)
        torch.testing.assert_close(weights[row].double(), mean / mean.norm(), rtol=0, atol=1e-6)
    assert weights.requires_grad  # the text tower may be tuned
    assert not ZeroShotClassifier(model, NAMES, TEMPLATES).class_weights.requires_grad


def test_more_prompts_than_fit_one_pass_keep_their_order(tiny_clip):
    model = tiny_clip()
    names = [f"thing {number}" for number in range(150)]
    weights = encode_classes(model, names, TEMPLATES)
    for row in (0, 127, 128, 149):
        torch.testing.assert_close(weights[row], encode_classes(model, [names[row]], TEMPLATES)[0], rtol=0, atol=1e-5)


def test_class_names_are_used_as_they_are_and_never_changed(tiny_clip):
    """D24: published code refined names in place, and everything that read them later saw other words."""
    names, templates = list(NAMES), list(TEMPLATES)
    classifier = ZeroShotClassifier(tiny_clip(), names, templates)
    assert (names, templates) == (NAMES, TEMPLATES)
    assert classifier.class_names == tuple(NAMES)
    names.clear()
    assert classifier.class_names == tuple(NAMES)
    heron = encode_classes(classifier.model, ["Great Blue_Heron"], TEMPLATES)
    refined = encode_classes(classifier.model, ["great blue heron"], TEMPLATES)
    torch.testing.assert_close(classifier.class_weights[1:2], heron, rtol=0, atol=1e-5)
    assert (classifier.class_weights[1] - refined).abs().max() > 1e-3


def test_a_classifier_scores_images_against_its_prompts(tiny_clip, pixels):
    model = tiny_clip()
    classifier = ZeroShotClassifier(model, NAMES, TEMPLATES)
    logits = classifier.logits(pixels)
    expected = 100 * torch.tensor(
        cosines_by_hand(model.image_features(pixels), encode_classes(model, NAMES, TEMPLATES))
    )
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    other = encode_classes(model, ["moon", "sun"], TEMPLATES)
    assert classifier.logits(pixels, other).shape == (4, 2)
    each = torch.stack([unit_rows(6, 16, seed=row) for row in range(4)])
    torch.testing.assert_close(
        classifier.logits(pixels, each)[2], classifier.logits(pixels, each[2])[2], rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("threads", [1, 2])
def test_classes_of_one_name_tie_exactly(tiny_clip, threads):
    """The tie rule (lowest index among identical prompts) needs a tie; a matrix product alone does not give one."""
    classifier = ZeroShotClassifier(tiny_clip(), NAMES, TEMPLATES)
    pixels = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for dtype in classifier.precisions:
            with classifier.computing(dtype):
                logits = classifier.logits(pixels)
            assert torch.equal(logits[:, 2], logits[:, 4])
            assert torch.equal(logits[:, 2], logits[:, 8])
            assert torch.equal(logits, logits[:, class_groups(NAMES)])
    finally:
        torch.set_num_threads(before)


def test_the_gradient_reaches_pixels_through_tied_classes(tiny_clip, pixels):
    classifier = ZeroShotClassifier(tiny_clip().requires_grad_(False), NAMES, TEMPLATES)
    pixels.requires_grad_(True)
    (twin,) = torch.autograd.grad(classifier.logits(pixels)[:, 8].sum(), pixels)
    (first,) = torch.autograd.grad(classifier.logits(pixels)[:, 2].sum(), pixels)
    assert first.abs().max() > 0
    torch.testing.assert_close(twin, first)


def test_ties_are_measured_in_units_of_the_logits(tiny_clip):
    model = tiny_clip()
    classifier = ZeroShotClassifier(model, NAMES, TEMPLATES)
    assert classifier.tie_tolerance == pytest.approx(1e-4)
    with torch.no_grad():
        model.log_logit_scale.fill_(0)
    assert classifier.tie_tolerance == pytest.approx(1e-6)


def test_another_logit_scale_than_the_models_own(tiny_clip, pixels):
    model = tiny_clip()
    weights = unit_rows(3, 16)
    own, other = FixedClasses(model, weights), FixedClasses(model, weights, logit_scale=1.0)
    torch.testing.assert_close(100 * other.logits(pixels), own.logits(pixels))
    each = weights.expand(len(pixels), -1, -1)
    torch.testing.assert_close(100 * other.logits(pixels, each), own.logits(pixels, each))
    assert other.tie_tolerance == pytest.approx(1e-6)


def test_precision_is_the_image_towers_only(tiny_clip, pixels):
    classifier = ZeroShotClassifier(tiny_clip(), NAMES, TEMPLATES)
    exact = classifier.logits(pixels)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        with classifier.computing(dtype):
            logits = classifier.logits(pixels)
        assert logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert (logits - exact).abs().max() < (2.0 if dtype == torch.bfloat16 else 1e-3)


@pytest.mark.parametrize(
    ("names", "templates", "words"),
    [
        ([], TEMPLATES, "0 class names and 2 templates"),
        ("dog", TEMPLATES, "Give a list"),
        (NAMES, [], "10 class names and 0 templates"),
        (NAMES, "a {}", "Give a list"),
        (NAMES, ["a photo"], r'"a photo" has no \{\}'),
    ],
)
def test_nothing_to_encode_is_refused(tiny_clip, names, templates, words):
    with pytest.raises(ConfigError, match=words):
        ZeroShotClassifier(tiny_clip(), names, templates)


def test_a_python_callable_is_a_classifier(pixels):
    weights = torch.randn(3 * 32 * 32, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    classifier = PythonClassifier(lambda x: x.double().flatten(1) @ weights, class_names=list("abcde"))
    logits = classifier.logits(pixels)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, (pixels.double().flatten(1) @ weights).float())
    assert classifier.device == torch.device("cpu")
    assert classifier.precisions == {torch.float32}
    with classifier.computing(torch.float32):
        pass
    with (
        pytest.raises(ConfigError, match=r"computes in float32 only, .* torch.bfloat16"),
        classifier.computing(torch.bfloat16),
    ):
        pass


def test_a_python_module_is_put_into_eval_mode():
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 3)).train()
    classifier = PythonClassifier(module)
    assert not module.training
    assert set(classifier.parameters()) == set(module.parameters())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: x.mean((1, 2, 3)), r"returned \(4,\) for 4 images.\n.*logits \[B, C\]"),
        (lambda x: x[:2].flatten(1), r"returned \(2, 3072\) for 4 images"),
        (lambda x: [0.0] * len(x), "returned list for 4 images"),
        (lambda x: x.flatten(1)[:, :7], "returned 7 logits an image for 3 class names.\n.*one logit a class"),
    ],
    ids=["one axis", "too few rows", "no tensor", "too many classes"],
)
def test_a_python_callable_that_returns_no_logits_is_refused(pixels, call, words):
    with pytest.raises(ShapeError, match=words):
        PythonClassifier(call, class_names=["a", "b", "c"]).logits(pixels)


def test_a_python_callable_gets_only_images(pixels):
    with pytest.raises(ValueRangeError, match="expected numbers in"):
        PythonClassifier(lambda x: x.flatten(1)).logits(pixels * 255)
