"""The short way through the text tower against the tower itself, forwards and backwards."""

from __future__ import annotations

import pytest
import torch

from ironclip.errors import ConfigError
from ironclip.models._architecture import build_clip, preprocessing_of
from ironclip.models.clip import CLIPModel, ModelSpec, tokenizer_for
from ironclip.pretraining.short_texts import check_text_tower, text_features

TEXTS = ["a cat", "", "a large red striped circle at the top left and a dog " * 3, "dog", "zyrian", "word " * 90]
LAYERS = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3}


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_features_are_those_of_the_whole_context(tiny_clip, layers, quick_gelu):
    model = tiny_clip(text_cfg=LAYERS | {"layers": layers}, quick_gelu=quick_gelu)
    check_text_tower(model)
    for texts in (TEXTS, TEXTS[:1]):
        ids = model.tokenize(texts)
        torch.testing.assert_close(text_features(model, ids), model.text_features(ids), atol=1e-6, rtol=0)


def test_gradients_are_those_of_the_whole_context(tiny_clip):
    model = tiny_clip(text_cfg=LAYERS)
    ids, weights = model.tokenize(TEXTS), torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    found = {}
    for features in (text_features, CLIPModel.text_features):
        model.zero_grad()
        (features(model, ids) * weights).sum().backward()
        found[features] = {name: value.grad for name, value in model.clip.named_parameters() if value.grad is not None}
    short, whole = found.values()
    assert set(short) == set(whole)
    for name, gradient in whole.items():
        torch.testing.assert_close(short[name], gradient, atol=1e-5, rtol=1e-3)


def test_bfloat16_comes_near(tiny_clip):
    model = tiny_clip(text_cfg=LAYERS)
    ids = model.tokenize(TEXTS)
    with torch.autocast("cpu", torch.bfloat16):
        features = text_features(model, ids)
    assert features.dtype == torch.float32
    assert (features * model.text_features(ids)).sum(dim=1).min() > 0.999


@pytest.mark.parametrize("change", [{"pool_type": "last"}, {"no_causal_mask": True}, {"ls_init_value": None}])
def test_other_towers_are_refused(change):
    architecture = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 1, "head_width": 32},
        "text_cfg": LAYERS | change,
        "custom_text": "ls_init_value" in change,
    }
    clip = build_clip(architecture, "other")
    spec = ModelSpec("other", architecture, "", preprocessing_of(clip, {}, "other"))
    with pytest.raises(ConfigError, match="text tower of other is not CLIP's own"):
        check_text_tower(CLIPModel(clip, tokenizer_for(architecture), spec))
