"""transformers' CLIP folders, against transformers' own logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ironclip.errors import ConfigError, WeightsError
from ironclip.models.preprocessing import Preprocessing
from ironclip.models.sources import load_model
from made_up_images import natural_like, to_pil

transformers = pytest.importorskip("transformers", reason='transformers is not installed: pip install "ironclip[hf]"')

TEXTS = ["a photo of a dog.", "7", "a very long-legged flamingo in the morning"]


def theirs(activation: str) -> Any:
    """Build transformers' CLIP with every weight away from 0 and 1."""
    sizes = {"intermediate_size": 96, "hidden_act": activation}
    config = transformers.CLIPConfig(
        text_config=sizes | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        vision_config=sizes
        | {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = transformers.CLIPModel(config).eval()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return model


@pytest.fixture
def saved(tmp_path) -> Path:
    theirs("gelu").save_pretrained(tmp_path)
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        tmp_path
    )
    return tmp_path


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("fast", [True, False])
def test_logits_are_transformers_own(tmp_path, activation, fast):
    reference = theirs(activation)
    reference.save_pretrained(tmp_path)
    model = load_model(f"local-dir:{tmp_path}", fast=fast)
    assert (model.fast_path, model.text_path) == (("on", "on") if fast else ("switched off", "switched off"))
    pixels, tokens = natural_like(4, 32), model.tokenize(TEXTS)
    with torch.no_grad():
        out = reference(input_ids=tokens, pixel_values=Preprocessing(32).normalise(pixels))
        ours = model.logit_scale * model.image_features(pixels) @ model.text_features(tokens).T
    assert out.logits_per_image.std() > 0.01
    torch.testing.assert_close(ours, out.logits_per_image, rtol=0, atol=1e-4)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_gradients_and_bfloat16_embeddings_are_near_transformers_own(tmp_path, activation):
    reference = theirs(activation)
    reference.save_pretrained(tmp_path)
    model = load_model(f"local-dir:{tmp_path}")
    pixels, tokens = natural_like(4, 32), model.tokenize(TEXTS)
    given = [pixels.clone().requires_grad_(True) for _ in range(2)]
    out = reference(input_ids=tokens, pixel_values=Preprocessing(32).normalise(given[0]))
    logits = model.logit_scale * model.image_features(given[1]) @ model.text_features(tokens).T
    for each in (out.logits_per_image, logits):
        each.square().sum().backward()
    tables = [reference.text_model.embeddings.token_embedding.weight, model.clip.token_embedding.weight]
    for expected, found in ([one.grad for one in given], [one.grad for one in tables]):
        assert expected.norm() > 0
        assert (found - expected).norm() <= 1e-4 * expected.norm()
    with torch.no_grad(), model.computing(torch.bfloat16):
        for found, expected in (
            (model.image_features(pixels), out.image_embeds),
            (model.text_features(tokens), out.text_embeds),
        ):
            assert (found * expected).sum(dim=1).min() >= 0.999


def test_images_are_prepared_as_transformers_does(saved):
    model = load_model(f"local-dir:{saved}")
    processor = transformers.CLIPImageProcessor.from_pretrained(saved)
    image = to_pil(natural_like(1, 50, 40)[0])
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    ours = model.spec.preprocessing.normalise(model.preprocess(image))
    assert (ours - expected).abs().max() < 1.01 / 255 / 0.26  # one 8-bit level, where two resizers round apart


def test_a_saved_copy_is_an_open_clip_folder(saved, tmp_path, pixels):
    from ironclip.models.sources import save_model

    model = load_model(f"local-dir:{saved}")
    save_model(model, tmp_path / "again")
    again = load_model(f"local-dir:{tmp_path}/again")
    torch.testing.assert_close(again.embed_image(pixels), model.embed_image(pixels), rtol=0, atol=0)


def test_old_files_load_too(saved):
    """Pickles, stored position numbers, settings under a second name, defaults left out, and the old end of text."""
    tensors = load_file(saved / "model.safetensors")
    expected = load_model(f"local-dir:{saved}").clip.state_dict()
    positions = {f"{tower}_model.embeddings.position_ids": torch.arange(4)[None] for tower in ("text", "vision")}
    torch.save(tensors | positions, saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    config = json.loads((saved / "config.json").read_text())
    text = config.pop("text_config")
    edit(saved / "config.json", text_config={"hidden_size": 1}, text_config_dict=text | {"eos_token_id": 2})
    loaded = load_model(f"local-dir:{saved}").clip.state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_the_processors_constants_are_taken(saved):
    edit(saved / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5], image_std=[0.2, 0.2, 0.2], resample=2, size=32)
    preprocessing = load_model(f"local-dir:{saved}").spec.preprocessing
    assert preprocessing == Preprocessing(32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "bilinear")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "bert"}, r'has model_type "bert".\n.*open_clip\'s CLIP models and transformers\' CLIP'),
        ({"model_type": "siglip"}, r'"siglip" \(SigLIP: its logits have a bias\)'),
        ({"text_config": {"hidden_act": "gelu", "vocab_size": 30000}}, r"vocab_size -/30000 \(vision/text\)"),
        ({"text_config": {"hidden_act": "quick_gelu"}}, r"hidden_act gelu/quick_gelu \(vision/text\)"),
        ({"text_config": {"hidden_act": "gelu", "eos_token_id": 7}}, r"eos_token_id -/7"),
        ({"text_config": {"hidden_act": "gelu", "layer_norm_eps": 1e-6}}, r"layer_norm_eps 1e-05/1e-06"),
    ],
)
def test_what_open_clips_towers_cannot_express_is_refused(saved, changes, words):
    edit(saved / "config.json", **changes)
    with pytest.raises(ConfigError, match=words):
        load_model(f"local-dir:{saved}")


def test_another_preprocessing_is_refused(saved):
    edit(saved / "preprocessor_config.json", size={"shortest_edge": 40})
    with pytest.raises(ConfigError, match=r"size \{'shortest_edge': 40\}.*\n.*shorter side to the tower's 32 pixels"):
        load_model(f"local-dir:{saved}")


def test_tensors_of_other_names_are_counted(saved):
    tensors = load_file(saved / "model.safetensors")
    del tensors["text_model.encoder.layers.0.self_attn.k_proj.bias"]
    tensors["extra.weight"] = torch.zeros(1)
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(
        WeightsError, match=r"1 missing \(transformer.resblocks.0.attn.in_proj_bias\); 1 unexpected \(extra.weight\)"
    ):
        load_model(f"local-dir:{saved}")


def test_missing_weights_are_named(saved):
    (saved / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"has no model.safetensors or pytorch_model.bin"):
        load_model(f"local-dir:{saved}")
