"""Prompts in both towers against an independent float64 oracle, and what is refused."""

from __future__ import annotations

import logging

import pytest
import torch

from ironclip.errors import ConfigError
from ironclip.methods.base import METHODS
from ironclip.models.fast_text import make_room
from ironclip.models.prompts import FreePrompts, check_length, drawn_layers, prompt_depth, words_of_template
from ironclip.models.tuning import Tunable, tuned_parameters
from ironclip.models.visual_prompt import PixelFrame
from ironclip.models.zero_shot import encode_classes
from oracles import prompts as oracle

DEEP = {
    "vision": {"layers": 4},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3},
}
TEMPLATE = "a photo of a {}, a thing."
SETTINGS = {
    "apt": {"length": 3},
    "advpt": {"length": 4},
    "fap": {"length": 2},
    "capt": {"length": 2, "depth": 2},
    "tecoa_vp": {"tokens": 3},
}


@pytest.fixture
def prompted(tiny_clip):
    """Make a deeper tiny CLIP with the prompts of a method, moved away from where they begin."""

    def make(name):
        model = tiny_clip(**DEEP)
        METHODS.create(name, SETTINGS[name]).attach(model, [TEMPLATE], seed=3)
        random = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.prompts.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=random))
        return model.requires_grad_(False)

    return make


def ids_of(model, text):
    row = model.tokenize([text])[0].tolist()
    return row[: row.index(max(row)) + 1]


@pytest.mark.parametrize("name", SETTINGS)
def test_images_equal_the_oracle(name, prompted, pixels):
    model = prompted(name)
    with model.computing(torch.float64):
        found = model.embed_image(pixels[:2].double())
    plain = model.prompts.plain().requires_grad_(False)
    normalised = model.spec.preprocessing.normalise(pixels[:2].double())
    frame = None if plain.frame is None else plain.frame(torch.zeros(3, 32, 32, dtype=torch.float64))
    layers = list(plain.image)
    state = model.clip.state_dict()
    expected = [oracle.embed_image(state, one, heads=2, prompts=layers, frame=frame) for one in normalised]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["apt", "advpt", "fap", "capt"])
def test_classes_equal_the_oracle(name, prompted):
    model = prompted(name)
    names = ["dog", "palm tree"]
    found = encode_classes(model, names, ["never {} read"])
    texts = [f"{one}." if name in ("apt", "advpt") else f"of a {one}, a thing." for one in names]
    words, state = list(model.prompts.plain().requires_grad_(False).text), model.clip.state_dict()
    expected = torch.stack([oracle.embed_text(state, ids_of(model, text), heads=2, words=words) for text in texts])
    expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_oracle_without_prompts_is_the_stock_model(tiny_clip, pixels):
    model = tiny_clip(**DEEP).requires_grad_(False)
    state = model.clip.state_dict()
    text = oracle.embed_text(state, ids_of(model, "a dog"), heads=2)
    torch.testing.assert_close(model.embed_text(["a dog"])[0].double(), text, rtol=1e-4, atol=1e-5)
    image = oracle.embed_image(state, model.spec.preprocessing.normalise(pixels[:1])[0], heads=2)
    torch.testing.assert_close(model.embed_image(pixels[:1])[0].double(), image, rtol=1e-4, atol=1e-5)


def test_learned_words_that_are_those_of_the_template_change_nothing(tiny_clip):
    model, plain = tiny_clip(), tiny_clip()
    first, words = words_of_template(model, TEMPLATE, 2)
    assert words == ("of a ", ", a thing.")
    model.attach(FreePrompts(text=[first], words=words))
    found, expected = (encode_classes(one, ["dog", "cup"], [TEMPLATE]) for one in (model, plain))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_patches_are_those_of_the_image(prompted, pixels):
    model = prompted("tecoa_vp")
    assert model.patch_tokens(pixels).shape == (4, 16, 16)
    assert model.patch_tokens(pixels, layer=1, projected=False).shape == (4, 16, 64)
    embedding, patches = model.embed_with_patches(pixels)
    torch.testing.assert_close(embedding, model.embed_image(pixels), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(patches, model.patch_tokens(pixels))


def test_fap_turns_its_coupling_after_the_first_layer(prompted):
    prompts = prompted("fap").prompts
    text, image = prompts.text_layers(), prompts.image_layers()
    assert len(text) == len(image) == 3
    assert text[0] is prompts.context
    assert image[1] is prompts.tokens[0]
    torch.testing.assert_close(image[0], prompts.context @ prompts.to_image.weight.T + prompts.to_image.bias)
    torch.testing.assert_close(text[2], prompts.tokens[1] @ prompts.to_text[1].weight.T + prompts.to_text[1].bias)


def test_prompts_are_all_that_is_tuned(prompted):
    model = prompted("fap")
    tuned = tuned_parameters(model, Tunable.PROMPTS)
    assert set(tuned) == {f"prompts.{name}" for name, _ in model.prompts.named_parameters()}
    both = tuned_parameters(model, Tunable.BOTH)
    assert not set(both) & set(tuned)


def test_depth_ends_with_the_shorter_tower_and_is_logged(tiny_clip, caplog):
    model = tiny_clip(**DEEP)
    with caplog.at_level(logging.INFO, logger="ironclip.models.prompts"):
        assert prompt_depth(model, 9) == 3
    assert "prompt depth 3: 9 asked for, 3 layers in the shorter tower" in caplog.text
    assert prompt_depth(model, 2) == 2


def test_draws_are_a_function_of_the_seed():
    first, again, other = (drawn_layers(2, 4, 1000, seed, "text") for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], first[1])
    assert first[0].std().item() == pytest.approx(0.02, rel=0.1)


def test_a_long_text_keeps_its_end():
    ids = torch.tensor([[90, 1, 2, 99, 0, 0], [90, 1, 2, 3, 4, 99]])
    assert make_room(ids, 2).tolist() == [[90, 0, 0, 1, 2, 99], [90, 0, 0, 1, 2, 99]]
    assert make_room(ids, 0) is ids


def test_a_frame_leaves_the_middle_alone():
    frame = PixelFrame.drawn(8, 2, seed=0)
    found = frame(torch.zeros(1, 3, 8, 8))[0]
    assert torch.equal(found[:, 2:6, 2:6], torch.zeros(3, 4, 4))
    assert (found[:, :2] != 0).all()
    assert (found[:, 2:6, 6:] != 0).all()
    assert torch.equal(found[:, 2:6, :2], frame.left)


@pytest.mark.parametrize("width", [0, 4])
def test_a_frame_that_covers_all_or_nothing_is_refused(width):
    with pytest.raises(ConfigError, match=f"a frame of {width} pixels around images of 8") as caught:
        PixelFrame.drawn(8, width, seed=0)
    assert "from 1 to 3" in caught.value.remedy


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a {}", "1 words before its {}, of which 2"),
        ("incomprehensibilities of {}", "first 2 words .* are [0-9]+ tokens"),
    ],
)
def test_templates_that_do_not_begin_with_plain_words_are_refused(template, message, tiny_clip):
    with pytest.raises(ConfigError, match=message):
        words_of_template(tiny_clip(), template, 2)


@pytest.mark.parametrize("length", [0, 75])
def test_words_without_room_are_refused(length, tiny_clip):
    with pytest.raises(ConfigError, match=f"{length} learned words in a text of 77 tokens") as caught:
        check_length(tiny_clip(), length)
    assert "from 1 to 74" in caught.value.remedy


def test_prompts_on_prompts_are_refused(prompted):
    with pytest.raises(ConfigError, match="has prompts already"):
        prompted("apt").attach(FreePrompts())


def test_without_the_fast_path_prompts_are_refused_in_words(tiny_clip):
    model = tiny_clip(fast=False)
    with pytest.raises(ConfigError, match="cannot read prompts and adapters: its fast path is off: switched off"):
        model.attach(FreePrompts())
    assert model.prompts is None


def test_text_towers_that_prompts_do_not_fit_are_named(tiny_clip):
    model = tiny_clip(text_cfg=DEEP["text_cfg"] | {"pool_type": "eos", "eos_id": 49407})
    with pytest.raises(ConfigError, match="its fast path is off: its text tower does not read the end token"):
        model.attach(FreePrompts())
    assert model.prompts is None
