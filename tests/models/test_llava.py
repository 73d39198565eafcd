"""LLaVA folders in the hub's layout with random small weights, against transformers' own label loss."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from ironclip.errors import ConfigError, ShapeError, ValueRangeError, WeightsError
from ironclip.models.llava import load_llava
from ironclip.models.vlm import IGNORED, answer_loss, answer_margin
from made_up_images import natural_like
from made_up_llava import TEMPLATE, tokenizer, write_llava

transformers = pytest.importorskip("transformers", reason='transformers is not installed: pip install "ironclip[hf]"')


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture
def llava(folder):
    return load_llava(folder, template=TEMPLATE)


@pytest.fixture
def elsewhere(folder, tmp_path):
    """Copy the folder, to be spoilt."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def state(llava):
    return {name: value.clone() for name, value in llava.language.state_dict().items()}


def label_loss(folder, pixels, prompt, target):
    """Ask transformers itself, its processor's layout written by hand: 16 image tokens, labels behind the prompt."""
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer()
    before = [*ids("USER :")["input_ids"], *[4] * 16, *ids(f"{prompt} ASSISTANT :")["input_ids"]]
    after = [*ids(target)["input_ids"], 2]
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (transformers_mean(), transformers_std()))
    with torch.no_grad():
        return model(
            input_ids=torch.tensor([before + after]),
            attention_mask=torch.ones(1, len(before + after), dtype=torch.int64),
            pixel_values=(pixels - mean) / std,
            labels=torch.tensor([[-100] * len(before) + after]),
        ).loss


def transformers_mean():
    return transformers.image_utils.OPENAI_CLIP_MEAN


def transformers_std():
    return transformers.image_utils.OPENAI_CLIP_STD


def test_the_loss_is_transformers_own_whatever_stands_beside_a_row(folder, llava):
    pixels = natural_like(3, 32)
    prompts, targets = ["what is this ?", "a dog ?", "what is this red cat ?"], ["a dog runs on grass", "cat", "red"]
    with torch.no_grad():
        loss = llava.loss(pixels, prompts, targets)
    assert loss.dtype == torch.float32
    for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        expected = label_loss(folder, pixels[[row]], prompt, target)
        assert loss[row].item() == pytest.approx(expected.item(), abs=1e-5)
    assert loss.std() > 0.05


def test_pixels_get_a_gradient_and_other_resolutions_are_resized_inside(llava):
    pixels = natural_like(2, 48).requires_grad_(True)
    llava.loss(pixels, ["a ?"] * 2, ["dog", "cat"]).sum().backward()
    assert (pixels.grad.flatten(1).abs().sum(1) > 0).all()


def test_greedy_answers_are_what_teacher_forcing_calls_likeliest(llava):
    pixels, prompts = natural_like(3, 32), ["what is this ?", "a ?", "what is this ?"]
    said = llava.generate(pixels, prompts, max_new_tokens=3)
    assert len(said) == 3
    spoken = [row for row, text in enumerate(said) if text]
    assert spoken
    for row in spoken:
        lesson = llava.write([prompts[row]], [said[row]])
        with torch.no_grad():
            logits = llava.predict(pixels[[row]], lesson)
        assert answer_margin(logits, lesson) > 0
        other = llava.write([prompts[row]], ["on " + said[row] if not said[row].startswith("on") else "dog"])
        with torch.no_grad():
            assert answer_margin(llava.predict(pixels[[row]], other), other) < 0


def test_a_lesson_may_be_cut_and_keeps_its_length(llava):
    lesson = llava.write(["a ?", "what is this ?"], ["dog", "cat runs"])
    assert lesson.ids.shape == lesson.targets.shape
    assert [(row != IGNORED).sum().item() for row in lesson.targets] == [2, 3]
    one = lesson.take(torch.tensor([0, 0]))
    pixels = natural_like(1, 32).expand(2, -1, -1, -1)
    with torch.no_grad():
        twice = answer_loss(llava.predict(pixels, one), one)
        alone = llava.loss(pixels[:1], ["a ?"], ["dog"])
    assert twice[0] == twice[1]
    torch.testing.assert_close(twice[:1], alone)


def test_another_tower_changes_tower_weights_only_and_comes_off_again(llava, tiny_clip):
    before, clip, pixels = state(llava), tiny_clip(), natural_like(2, 32)
    with torch.no_grad():
        first = llava.loss(pixels, ["a ?"] * 2, ["dog", "cat"])
        llava.replace_tower(clip)
        second = llava.loss(pixels, ["a ?"] * 2, ["dog", "cat"])
        tokens, expected = llava.visual_tokens(pixels), clip.patch_tokens(pixels, layer=-2, projected=False)
    after = state(llava)
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed
    assert all(".vision_tower." in name for name in changed)
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-4)  # the tower that was tuned, to rounding
    assert (first - second).abs().min() > 1e-4
    assert llava.name.endswith(f"on tiny_clip ({clip.spec.sha256[:8]}), 32 px, layer -2")
    llava.restore_tower()
    restored = state(llava)
    assert all(torch.equal(restored[name], before[name]) for name in before)
    assert "its own tower" in llava.name


def test_another_resolution_is_refused_until_it_is_promised(llava, tiny_clip):
    wide, pixels = tiny_clip(vision={"image_size": 48}), natural_like(1, 48)
    with pytest.raises(ConfigError, match=r"reads 48 pixels, the tower of .* 32\.\n.*at 32, or pass resolution=48"):
        llava.replace_tower(wide)
    assert "its own tower" in llava.name
    llava.replace_tower(wide, resolution=48)
    assert llava.input_resolution == 48
    with torch.no_grad():
        assert llava.visual_tokens(pixels).shape == (1, 36, 64)
        assert torch.isfinite(llava.loss(pixels, ["a ?"], ["dog"])).all()
    # The stock tower is what a next one is measured against, not the one in its place.
    llava.replace_tower(tiny_clip())
    assert llava.input_resolution == 32


def test_another_architecture_is_refused(llava, tiny_clip):
    with pytest.raises(ConfigError, match=r"num_hidden_layers 3, not 2\.\n.*architecture"):
        llava.replace_tower(tiny_clip(vision={"layers": 3}))
    prompted = tiny_clip()
    prompted.clip.prompts = object()
    with pytest.raises(ConfigError, match=r"tiny_clip carries prompts or adapters.*\n.*Merge adapters"):
        llava.replace_tower(prompted)


def test_an_image_in_the_words_of_a_prompt_is_no_image(llava):
    with torch.no_grad():
        assert torch.isfinite(llava.loss(natural_like(1, 32), ["<image> is this"], ["dog"])).all()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model_type": "llava_next"}, ConfigError, r'model_type "llava_next" on a "clip_vision_model".*\n.*serves'),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, ConfigError, r'on a "siglip_vision_model"'),
    ],
)
def test_other_models_are_refused(elsewhere, change, error, words):
    config = json.loads((elsewhere / "config.json").read_text())
    (elsewhere / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(error, match=words):
        load_llava(elsewhere)


def test_a_folder_that_is_not_whole_is_refused(elsewhere):
    processor = json.loads((elsewhere / "preprocessor_config.json").read_text())
    (elsewhere / "preprocessor_config.json").write_text(json.dumps(processor | {"size": {"shortest_edge": 40}}))
    with pytest.raises(ConfigError, match=r"size \{'shortest_edge': 40\}.*for a tower of 32"):
        load_llava(elsewhere)
    (elsewhere / "preprocessor_config.json").unlink()
    with pytest.raises(WeightsError, match=r"has no preprocessor_config.json\.\n.*layout of llava-hf"):
        load_llava(elsewhere)


def test_requests_that_do_not_fit_are_refused(folder, llava):
    pixels = natural_like(2, 32)
    with pytest.raises(ShapeError, match="targets: 1 for 2 images"):
        llava.loss(pixels, ["a", "a"], ["dog"])
    with pytest.raises(ShapeError, match="prompts: a single text for 2 images"):
        llava.generate(pixels, "a")
    with pytest.raises(ValueRangeError, match="answer 1 is empty"):
        llava.loss(pixels, ["a", "a"], ["dog", ""])
    with pytest.raises(ValueRangeError, match="pixels range from"):
        llava.loss(pixels * 3, ["a", "a"], ["dog", "dog"])
    with pytest.raises(ConfigError, match="does not hold one <image>"):
        load_llava(folder, template="USER: {}")
    with pytest.raises(ConfigError, match=r"does not compute in torch\.bfloat16"), llava.computing(torch.bfloat16):
        pass


def test_a_copy_is_another_model(llava):
    other = copy.deepcopy(llava)
    other.restore_tower()
    assert other.device == llava.device
