"""Exported folders, against the libraries that they are for."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch

from ironclip.errors import ConfigError
from ironclip.models._to_transformers import rename_weights
from ironclip.models._transformers import translate_weights
from ironclip.models.adapters import Adapters
from ironclip.models.export import LAYOUTS, export_model
from ironclip.models.preprocessing import Preprocessing
from ironclip.models.prompts import FreePrompts
from ironclip.models.sources import load_model
from made_up_images import natural_like, to_pil

TEXTS = ["a photo of a dog.", "7", "A very long-legged FLAMINGO in the morning, at 5 o'clock", "naïve café №1"]
B32 = {
    # ViT-B-32 in everything but the sizes: 224 pixels, patches of 32, heads of 64, 77 tokens.
    "embed_dim": 32,
    "vision": {"image_size": 224, "patch_size": 32, "width": 128, "layers": 2, "head_width": 64},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}


def our_logits(model, pixels):
    with torch.no_grad():
        return model.logit_scale * model.image_features(pixels) @ model.text_features(TEXTS).T


def open_clips(folder, pixels):
    clip, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (clip.visual.image_mean, clip.visual.image_std))
    with torch.no_grad():
        image, text, scale = clip.eval()((pixels - mean) / std, open_clip.tokenize(TEXTS))
    return scale * image @ text.T


def transformers_own(folder, pixels):
    transformers = pytest.importorskip("transformers", reason='not installed: pip install "ironclip[hf]"')
    clip, loading = transformers.CLIPModel.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    processor = transformers.CLIPProcessor.from_pretrained(folder)
    tokens = processor.tokenizer(TEXTS, padding="max_length", return_tensors="pt")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    mean, std = (torch.tensor(settings[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
    with torch.no_grad():
        return clip.eval()(**tokens, pixel_values=(pixels - mean) / std).logits_per_image


LOADERS = {"open_clip": open_clips, "transformers": transformers_own}


def test_there_is_a_loader_for_every_layout():
    assert LOADERS.keys() == LAYOUTS.keys()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("shape", [{}, B32, {"custom_text": True}], ids=["small", "ViT-B-32", "custom text"])
def test_stock_libraries_give_the_same_logits(tiny_clip, tmp_path, layout, quick_gelu, shape):
    model = tiny_clip(quick_gelu=quick_gelu, **shape)
    pixels = natural_like(3, model.input_resolution)
    folder = export_model(model, tmp_path / "out", layout)
    ours, theirs = our_logits(model, pixels), LOADERS[layout](folder, pixels)
    assert ours.std() > 0.1
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)
    # With the other activation the logits would be others, so an exchanged one cannot pass.
    other = load_model(f"local-dir:{export_model(model, tmp_path / 'again', 'open_clip')}", fast=False)
    for block in [*other.visual.transformer.resblocks, *text_tower(other).transformer.resblocks]:
        block.mlp.gelu = torch.nn.GELU() if quick_gelu else open_clip.transformer.QuickGELU()
    assert (our_logits(other, pixels) - ours).abs().max() > 1e-2


def text_tower(model):
    return getattr(model.clip, "text", model.clip)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_packaged_model_too(tmp_path, layout):
    model = load_model("tiny")
    pixels = natural_like(3, 32)
    folder = export_model(model, tmp_path / "tiny", layout)
    torch.testing.assert_close(LOADERS[layout](folder, pixels), our_logits(model, pixels), rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_adapters_are_merged_into_the_copy(tiny_clip, tmp_path, pixels, layout):
    model = tiny_clip()
    model.attach(Adapters.drawn(model, rank=4, seed=0))
    with torch.no_grad():
        for parameter in model.adapters.parameters():
            parameter += 0.05
    logits = our_logits(model, pixels)
    assert (logits - our_logits(tiny_clip(), pixels)).abs().max() > 1e-2
    folder = export_model(model, tmp_path / "out", layout)
    torch.testing.assert_close(LOADERS[layout](folder, pixels), logits, rtol=0, atol=1e-4)
    assert model.adapters is not None
    assert torch.equal(our_logits(model, pixels), logits)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_prompts_are_refused(tiny_clip, tmp_path, layout):
    model = tiny_clip()
    model.attach(FreePrompts(text=[torch.zeros(2, 32)]))
    with pytest.raises(ConfigError, match=f"tiny_clip reads learned prompts, which {layout} has no place for"):
        export_model(model, tmp_path / "out", layout)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ironclip_loads_what_it_exports_bit_for_bit(tiny_clip, tmp_path, layout):
    model = tiny_clip(quick_gelu=True)
    preprocessing = Preprocessing(32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bilinear")
    model.spec = type(model.spec)("x", model.spec.architecture, "", preprocessing)
    again = load_model(f"local-dir:{export_model(model, tmp_path / 'out', layout)}")
    before, after = model.clip.state_dict(), again.clip.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert again.spec.preprocessing == preprocessing


def test_transformers_prepares_words_and_images_as_ironclip_does(tiny_clip, tmp_path):
    transformers = pytest.importorskip("transformers", reason='not installed: pip install "ironclip[hf]"')
    model = tiny_clip()
    folder = export_model(model, tmp_path / "out", "transformers")
    for tokenizer in (
        transformers.CLIPTokenizer.from_pretrained(folder),
        transformers.AutoTokenizer.from_pretrained(folder),
    ):
        ids = tokenizer(TEXTS)["input_ids"]
        expected = [row[: int(row.argmax()) + 1].tolist() for row in model.tokenize(TEXTS)]
        assert ids == expected
        assert tokenizer.model_max_length == 77
    image = to_pil(natural_like(1, 50, 40)[0])
    processor = transformers.CLIPProcessor.from_pretrained(folder)
    theirs = processor(images=image, return_tensors="pt")["pixel_values"][0]
    ours = model.spec.preprocessing.normalise(model.preprocess(image))
    assert (ours - theirs).abs().max() < 1.01 / 255 / 0.26  # one 8-bit level, where two resizers round apart


def test_renaming_is_the_way_back_of_translating(tiny_clip):
    tensors = dict(tiny_clip().clip.state_dict())
    there_and_back = translate_weights(rename_weights(tensors))
    assert there_and_back.keys() == tensors.keys()
    assert all(torch.equal(there_and_back[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vision": {"ls_init_value": 0.1}}, r"vision_cfg\.ls_init_value"),
        ({"vision": {"layers": [1, 1, 1, 1], "width": 16, "head_width": 16}}, r"vision_cfg\.layers"),
        ({"vision": {"no_ln_pre": True}}, r"vision_cfg\.no_ln_pre"),
    ],
)
def test_what_transformers_cannot_express_is_refused(tiny_clip, tmp_path, changes, named):
    with pytest.raises(ConfigError, match=f"cannot express {named} of tiny_clip.*\nExport it in open_clip's layout"):
        export_model(tiny_clip(**changes), tmp_path / "out", "transformers")
    assert not (tmp_path / "out").exists()


def test_squashed_images_are_refused_by_transformers_layout_only(tiny_clip, tmp_path):
    model = tiny_clip()
    squash = Preprocessing(32, resize_mode="squash")
    model.spec = type(model.spec)("x", model.spec.architecture, "", squash)
    with pytest.raises(ConfigError, match="cannot express resize mode squash of x"):
        export_model(model, tmp_path / "out", "transformers")
    assert load_model(f"local-dir:{export_model(model, tmp_path / 'out', 'open_clip')}").spec.preprocessing == squash


def test_a_place_that_is_taken_is_refused(tiny_clip, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"full is not empty\.\nName a new folder"):
        export_model(tiny_clip(), tmp_path / "full", "open_clip")
    with pytest.raises(ConfigError, match=r"run\.json is a file"):
        export_model(tiny_clip(), tmp_path / "full" / "run.json", "open_clip")
    assert (tmp_path / "full" / "run.json").read_text() == "{}"


def test_an_unknown_layout_names_the_near_one(tiny_clip, tmp_path):
    with pytest.raises(ConfigError, match=r'no layout "openclip" to export to\. Did you mean "open_clip"'):
        export_model(tiny_clip(), tmp_path / "out", "openclip")
