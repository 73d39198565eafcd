from __future__ import annotations

import pytest
import torch

from ironclip.errors import ConfigError, ShapeError, ValueRangeError
from ironclip.models.tiny_vlm import CONFIG, DecoderSizes, TinyVLM, Vocabulary, load_tiny_vlm, save_tiny_vlm
from ironclip.models.vlm import IGNORED, answer_margin
from made_up_images import natural_like

WORDS = Vocabulary.of(["what is this? a red dog, a cat on grass."])
SIZES = DecoderSizes(width=32, layers=2, heads=2, length=16)


@pytest.fixture
def vlm(tiny_clip):
    model = TinyVLM(tiny_clip(), WORDS, SIZES)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():  # away from the small first weights, where nothing depends on anything
        for parameter in model.decoder.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=random))
    return model


def test_words_go_round():
    assert WORDS.text(WORDS.ids("A red dog, a cat.")) == "a red dog, a cat."
    assert WORDS.ids("what zebra") == [WORDS.ids("what")[0], Vocabulary.UNKNOWN]
    assert WORDS.text([*WORDS.ids("cat"), Vocabulary.END, *WORDS.ids("dog")]) == "cat"
    assert Vocabulary.of(["a a b"], at_least=2).words == ("a",)
    assert Vocabulary.of(["it's a t-shirt"]).words == ("a", "it's", "t-shirt")


def test_a_place_sees_only_what_stands_before_it(vlm):
    pixels = natural_like(1, 32)
    one, other = vlm.write(["what is this?"], ["a red dog"]), vlm.write(["what is this?"], ["a red cat"])
    with torch.no_grad():
        first, second = vlm.predict(pixels, one), vlm.predict(pixels, other)
    place = (one.ids != other.ids)[0].int().argmax().item()
    torch.testing.assert_close(first[:, : place + 1], second[:, : place + 1], rtol=0, atol=1e-6)
    assert (first[:, place + 1] - second[:, place + 1]).abs().max() > 1e-3


def test_the_loss_is_minus_the_log_probability_of_the_answer(vlm):
    pixels = natural_like(2, 32)
    with torch.no_grad():
        loss = vlm.loss(pixels, ["what is this?"] * 2, ["a dog", "cat"])
        lesson = vlm.write(["what is this?"], ["cat"])
        logs = vlm.predict(pixels[1:], lesson)[0].double().log_softmax(dim=1)
    ids = lesson.ids[0].tolist()
    begin = ids.index(Vocabulary.ANSWER) + 1
    assert ids[begin:] == [*WORDS.ids("cat"), Vocabulary.END]
    expected = -(logs[begin, ids[begin]] + logs[begin + 1, Vocabulary.END]) / 2
    assert loss[1].item() == pytest.approx(expected.item(), abs=1e-5)


def test_a_word_that_it_does_not_have_is_neither_taught_nor_said(vlm):
    lesson = vlm.write(["what is this?"], ["a zebra"])
    assert (lesson.targets != IGNORED).sum() == 2  # "a" and the end
    with torch.no_grad():
        logits = vlm.predict(natural_like(1, 32), lesson)
    special = [Vocabulary.PADDING, Vocabulary.UNKNOWN, Vocabulary.ANSWER]
    assert logits.softmax(dim=2)[:, :, special].max() == 0


def test_greedy_answers_follow_the_likeliest_words(vlm):
    pixels, prompts = natural_like(3, 32), ["what is this?", "a cat?", "what is this?"]
    said = vlm.generate(pixels, prompts, max_new_tokens=4)
    assert said == [vlm.generate(pixels[[row]], [prompts[row]], max_new_tokens=4)[0] for row in range(3)]
    spoken = [row for row, text in enumerate(said) if len(WORDS.ids(text)) == 4]
    assert spoken
    for row in spoken:
        lesson = vlm.write([prompts[row]], [said[row]])
        with torch.no_grad():
            assert answer_margin(vlm.predict(pixels[[row]], lesson), lesson) > 0


def test_pixels_get_a_gradient_and_the_tower_none(vlm):
    pixels = natural_like(2, 32).requires_grad_(True)
    vlm.loss(pixels, ["what is this?"] * 2, ["dog", "cat"]).sum().backward()
    assert (pixels.grad.flatten(1).abs().sum(1) > 0).all()
    assert all(parameter.grad is None for parameter in vlm.clip.parameters())


def test_bfloat16_is_near(vlm):
    pixels, asked = natural_like(2, 32), (["what is this?"] * 2, ["dog", "cat"])
    with torch.no_grad():
        exact = vlm.loss(pixels, *asked)
        with vlm.computing(torch.bfloat16):
            near = vlm.loss(pixels, *asked)
    assert near.dtype == torch.float32
    assert not torch.equal(exact, near)
    torch.testing.assert_close(near, exact, rtol=0.1, atol=0.1)


def test_another_tower_takes_the_place_and_goes_again(vlm, tiny_clip):
    pixels, asked = natural_like(2, 32), (["what is this?"] * 2, ["dog", "cat"])
    with torch.no_grad():
        first = vlm.loss(pixels, *asked)
        decoder = {name: value.clone() for name, value in vlm.decoder.state_dict().items()}
        vlm.replace_tower(tiny_clip(seed=1))
        assert (vlm.loss(pixels, *asked) - first).abs().min() > 1e-4
        assert all(torch.equal(value, decoder[name]) for name, value in vlm.decoder.state_dict().items())
        vlm.restore_tower()
        assert torch.equal(vlm.loss(pixels, *asked), first)
    with pytest.raises(ConfigError, match=r"has 64 patches of width 64, the tower of tiny-vlm 16 of width 64"):
        vlm.replace_tower(tiny_clip(vision={"patch_size": 4}))


def test_a_saved_decoder_answers_as_before(vlm, tiny_clip, tmp_path):
    pixels, asked = natural_like(2, 32), (["what is this?"] * 2, ["dog", "cat"])
    vlm.replace_tower(tiny_clip(seed=1))  # the tower it was trained on is the one that counts
    save_tiny_vlm(vlm, tmp_path)
    vlm.restore_tower()
    again = load_tiny_vlm(tmp_path, tiny_clip())
    with torch.no_grad():
        assert torch.equal(again.loss(pixels, *asked), vlm.loss(pixels, *asked))
    with pytest.raises(ConfigError, match=r"was trained on another tower than tiny_clip\.\n.*replace_tower"):
        load_tiny_vlm(tmp_path, tiny_clip(seed=1))
    (tmp_path / CONFIG).unlink()
    with pytest.raises(ValueError, match=f"has no {CONFIG}"):
        load_tiny_vlm(tmp_path, tiny_clip())


def test_requests_that_do_not_fit_are_refused(vlm):
    pixels = natural_like(1, 32)
    with pytest.raises(ShapeError, match=r"need 23 places, tiny-vlm has 16\.\n"):
        vlm.loss(pixels, ["what is this?"], [" ".join(["dog"] * 17)])
    with pytest.raises(ShapeError, match="need 25 places"):
        vlm.generate(pixels, ["what is this?"], max_new_tokens=20)
    with pytest.raises(ValueRangeError, match="answer 0 is empty"):
        vlm.loss(pixels, ["what is this?"], [" "])
    with pytest.raises(ConfigError, match="3 heads"):
        DecoderSizes(width=32, heads=3)
