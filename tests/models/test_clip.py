"""CLIPModel: embeddings, patch tokens, precisions, what it refuses; against open_clip's own passes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ironclip.errors import ConfigError, ShapeError, ValueRangeError
from ironclip.models.clip import CLIPModel, ModelSpec, tokenizer_for
from ironclip.models.preprocessing import Preprocessing
from ironclip.models.tuning import Tunable, tuned_parameters
from made_up_images import natural_like, to_pil

TEXTS = ["a photo of a dog.", "a photo of a very long-legged flamingo in the morning", "7"]
RESNET = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "image_size": 64}


@pytest.mark.parametrize("fast", [True, False])
def test_logits_equal_open_clips_forward(tiny_clip, pixels, fast):
    model = tiny_clip(fast=fast)
    with torch.no_grad():
        image, text, scale = model.clip(model.spec.preprocessing.normalise(pixels), model.tokenize(TEXTS))
        ours = model.logit_scale * model.image_features(pixels) @ model.text_features(TEXTS).T
    torch.testing.assert_close(ours, scale * image @ text.T, rtol=0, atol=1e-4)


def test_features_are_unit_rows_of_embeddings(tiny_clip, pixels):
    model = tiny_clip()
    for features, raw in [
        (model.image_features(pixels), model.embed_image(pixels)),
        (model.text_features(TEXTS), model.embed_text(TEXTS)),
    ]:
        assert features.dtype == torch.float32
        assert features.shape == (len(raw), 16)
        torch.testing.assert_close(features.norm(dim=1), torch.ones(len(raw)))
        torch.testing.assert_close(features, raw / raw.norm(dim=1, keepdim=True))
        assert (raw.norm(dim=1) - 1).abs().min() > 0.01  # raw means raw


def test_texts_and_their_tokens_embed_alike(tiny_clip):
    model = tiny_clip()
    tokens = model.tokenize(TEXTS)
    assert tokens.shape == (3, 77)
    torch.testing.assert_close(model.embed_text(tokens), model.embed_text(TEXTS), rtol=0, atol=0)


def test_the_scale_and_its_logarithm_are_not_confused(tiny_clip):
    model = tiny_clip()
    assert isinstance(model.log_logit_scale, nn.Parameter)
    assert model.log_logit_scale.item() == pytest.approx(math.log(100))
    assert model.logit_scale.item() == pytest.approx(100, abs=1e-3)
    assert model.logit_scale.dtype == torch.float32


@pytest.mark.parametrize("layer", [0, 1, -1, -2])
@pytest.mark.parametrize("projected", [True, False])
def test_patch_tokens_agree_with_open_clips_intermediates(tiny_clip, pixels, layer, projected):
    fast, slow = tiny_clip(), tiny_clip(fast=False)
    tokens = fast.patch_tokens(pixels, layer, projected)
    assert tokens.shape == (4, 16, 16 if projected else 64)
    assert tokens.dtype == torch.float32
    torch.testing.assert_close(tokens, slow.patch_tokens(pixels, layer, projected), rtol=1e-4, atol=1e-5)

    tower = slow.visual
    kept = tower.forward_intermediates(slow.spec.preprocessing.normalise(pixels), indices=[layer % 2], output_fmt="NLC")
    expected = kept["image_intermediates"][0]
    expected = tower.ln_post(expected) @ tower.proj if projected else expected
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fast", [True, False])
def test_embedding_and_patches_come_in_one_pass(tiny_clip, pixels, fast):
    model = tiny_clip(fast=fast)
    embedding, patches = model.embed_with_patches(pixels)
    torch.testing.assert_close(embedding, model.embed_image(pixels), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(patches, model.patch_tokens(pixels), rtol=1e-4, atol=1e-5)
    for dtype, kept in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        with model.computing(dtype):
            assert [part.dtype for part in model.embed_with_patches(pixels)] == [kept, kept]


def test_patch_tokens_stand_in_reading_order(tiny_clip):
    """A change in one patch moves its own token most: token 4 of 4 x 4 is the first of the second row."""
    model = tiny_clip()
    plain = torch.full((1, 3, 32, 32), 0.5)
    marked = plain.clone()
    marked[..., 8:16, 0:8] = 1
    with torch.no_grad():
        moved = model.patch_tokens(marked, 0, projected=False) - model.patch_tokens(plain, 0, projected=False)
    assert moved.norm(dim=-1).argmax() == 4


def test_patch_tokens_in_other_precisions(tiny_clip, pixels):
    model = tiny_clip()
    expected = model.patch_tokens(pixels)
    with model.computing(torch.bfloat16):
        assert F.cosine_similarity(model.patch_tokens(pixels), expected, dim=-1).min() > 0.99
    with model.computing(torch.float64):
        assert model.patch_tokens(pixels).dtype == torch.float64


@pytest.mark.parametrize("layer", [2, -3])
def test_a_layer_that_is_not_there_is_refused(tiny_clip, pixels, layer):
    with pytest.raises(ShapeError, match=rf"layer {layer} of a tower with 2 blocks.\n.*from -2 to 1"):
        tiny_clip().patch_tokens(pixels, layer)


def test_a_tower_without_patch_tokens_says_so(tiny_clip):
    with pytest.raises(ConfigError, match="ModifiedResNet has no patch tokens"):
        tiny_clip(vision=RESNET).patch_tokens(natural_like(1, 64))
    with pytest.raises(ConfigError, match="ModifiedResNet has no patch tokens"):
        tiny_clip(vision=RESNET).embed_with_patches(natural_like(1, 64))


def test_computing_ends_with_its_block(tiny_clip, pixels):
    model = tiny_clip()
    before = model.embed_image(pixels)
    with model.computing(torch.bfloat16):
        with model.computing(torch.float64):
            assert model.embed_image(pixels).dtype == torch.float64
        assert model.compute_dtype == torch.bfloat16
    with pytest.raises(KeyError, match="stop"), model.computing(torch.bfloat16):
        raise KeyError("stop")
    assert model.compute_dtype == torch.float32
    torch.testing.assert_close(model.embed_image(pixels), before, rtol=0, atol=0)


@pytest.mark.parametrize("fast", [True, False])
def test_float64_is_exact_from_the_pixel_on(tiny_clip, fast):
    """What settles a tie must not depend on float32 steps before the tower, resizing and normalisation among them."""
    model, pixels = tiny_clip(fast=fast), natural_like(2, 48)
    with model.computing(torch.float64):
        found = model.embed_image(pixels)
        torch.testing.assert_close(found, model.embed_image(pixels.double()), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_pixels_are_widened_before_normalisation(tiny_clip, pixels, dtype):
    model, narrow = tiny_clip(), pixels.to(dtype)
    torch.testing.assert_close(model.embed_image(narrow), model.embed_image(narrow.float()), rtol=0, atol=0)


@pytest.mark.parametrize("size", [(48, 48), (64, 40), (24, 24)])
def test_an_adversary_may_act_at_any_resolution(tiny_clip, size):
    model, pixels = tiny_clip().requires_grad_(False), natural_like(2, *size).requires_grad_(True)
    embedding = model.embed_image(pixels)
    resized = model.spec.preprocessing.resize(pixels)
    torch.testing.assert_close(embedding, model.embed_image(resized), rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(embedding.sum(), pixels)
    assert gradient.shape == pixels.shape
    assert gradient.abs().sum() > 0


def test_preprocess_gives_pixels_that_the_model_takes(tiny_clip):
    model = tiny_clip()
    pixels = model.preprocess(to_pil(natural_like(1, 50, 40)[0]))
    assert pixels.shape == (3, model.input_resolution, model.input_resolution) == (3, 32, 32)
    assert 0 <= pixels.min() < pixels.max() <= 1
    assert model.embed_image(pixels[None]).shape == (1, 16)


def test_normalised_pixels_are_refused(tiny_clip, pixels):
    model = tiny_clip()
    with pytest.raises(ValueRangeError, match=r"expected numbers in \[0, 1\].\n.*before mean and std"):
        model.embed_image(model.spec.preprocessing.normalise(pixels))
    with pytest.raises(ValueRangeError, match="uint8"):
        model.embed_image((pixels * 255).to(torch.uint8))
    with pytest.raises(ShapeError, match=r"\[B, 3, H, W\]"):
        model.patch_tokens(pixels[0])


def test_a_training_attack_may_begin_a_little_outside(tiny_clip, pixels):
    model = tiny_clip()
    model.embed_image(pixels + 16 / 255)
    with pytest.raises(ValueRangeError, match="pixels range"):
        model.embed_image(pixels + 17 / 255)


def test_batch_statistics_stay_frozen_in_training(tiny_clip):
    model, pixels = tiny_clip(vision=RESNET), natural_like(4, 64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        evaluated = model.embed_image(pixels)
        model.train()
        trained = model.embed_image(pixels)
    assert model.training
    assert model.clip.training
    torch.testing.assert_close(trained, evaluated, rtol=0, atol=0)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_new_model_is_in_eval_mode(tiny_clip):
    assert not any(module.training for module in tiny_clip().modules())


def test_the_towers_share_no_parameter_and_leave_none_out(tiny_clip):
    model = tiny_clip()
    vision, text = set(model.visual.parameters()), set(model.text_parameters())
    assert not vision & text
    assert vision | text | {model.log_logit_scale} == set(model.parameters())
    assert set(tuned_parameters(model, Tunable.VISION).values()) == vision
    assert set(tuned_parameters(model, Tunable.BOTH).values()) == vision | text
    with pytest.raises(ConfigError, match="no prompts to tune"):
        tuned_parameters(model, Tunable.PROMPTS)


def test_siglip_is_refused(tiny_clip):
    model = tiny_clip()
    model.clip.logit_bias = nn.Parameter(torch.tensor(-10.0))
    spec = ModelSpec("some-siglip", {}, "", Preprocessing(32))
    with pytest.raises(ConfigError, match=r"some-siglip has a logit bias \(SigLIP\)"):
        CLIPModel(model.clip, model.tokenizer, spec)


def test_the_context_length_is_the_configurations():
    assert tokenizer_for({"text_cfg": {"context_length": 32}})(["a dog"]).shape == (1, 32)
    assert tokenizer_for({})(["a dog"]).shape == (1, 77)


def test_another_tokenizer_is_refused():
    with pytest.raises(ConfigError, match='the tokenizer "org/words" of a hub'):
        tokenizer_for({"text_cfg": {"hf_tokenizer_name": "org/words"}})
