"""What the page of `ironclip demo` shows, without the page."""

from __future__ import annotations

import io
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from ironclip.demo.page import answer, build_page
from ironclip.demo.pictures import specimens
from ironclip.demo.side_by_side import CHOICES, CLASSES, RADII, SideBySide
from ironclip.errors import ConfigError, DataError, MissingDependencyError, ValueRangeError
from ironclip.models.zero_shot import ZeroShotClassifier

NAMES = ["cat", "dog", "sky"]


@pytest.fixture
def models(tiny_clip):
    return {"original": tiny_clip(), "robust": tiny_clip(seed=1)}


@pytest.fixture
def image() -> bytes:
    levels = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("eps", [RADII[0], RADII[-1]])
def test_what_is_shown_is_what_the_models_say(models, image, choice, eps):
    for outcome in SideBySide(models).attack(image, ", ".join(NAMES), choice, eps):
        model = models[outcome.model]
        clean = model.preprocess(Image.open(io.BytesIO(image)))
        step = outcome.before.shape[0] // 32  # small pictures are enlarged by a whole factor
        before, after = (
            picture[::step, ::step].transpose(2, 0, 1) / 255 for picture in (outcome.before, outcome.after)
        )
        np.testing.assert_allclose(before, clean.numpy(), atol=1e-6)
        # Shown in 8-bit, so half a level more than the ball.
        assert np.abs(after - before).max() <= float(Fraction(eps)) + 0.5 / 255 + 1e-6
        odds = ZeroShotClassifier(model, NAMES, ["a photo of a {}."]).logits(clean[None]).softmax(dim=1)[0]
        assert outcome.clean == pytest.approx(dict(zip(NAMES, odds.tolist(), strict=True)), abs=1e-5)
        assert sum(outcome.attacked.values()) == pytest.approx(1)
        changed = max(outcome.clean, key=outcome.clean.get) != max(outcome.attacked, key=outcome.attacked.get)
        assert outcome.broken == changed == outcome.sentence.startswith("Fooled")
        assert f"{outcome.forwards:,} forward and {outcome.backwards:,} backward passes" in outcome.sentence
        assert outcome.seconds > 0


def test_the_change_is_grey_where_nothing_changed_and_fills_the_range(models, image):
    (outcome, _) = SideBySide(models).attack(image, "cat, dog", "FGSM: one step", "8/255")
    same = (outcome.before == outcome.after).all(axis=2)
    assert set(np.unique(outcome.change[same])) <= {127, 128}
    assert (outcome.change.max() == 255) or (outcome.change.min() == 0)


def test_the_same_request_gives_the_same_answer(models, image):
    one, other = (SideBySide(models, seed=3).attack(image, "cat,dog", "PGD-20: twenty steps", "2/255") for _ in "12")
    assert [a.attacked for a in one] == [b.attacked for b in other]


@pytest.mark.parametrize(
    ("classes", "choice", "eps", "words"),
    [
        ("cat", "FGSM: one step", "1/255", r"Class names: 1\.\nGive 2 to 100"),
        (" , ", "FGSM: one step", "1/255", r"Class names: 0\."),
        (",".join(map(str, range(CLASSES + 1))), "FGSM: one step", "1/255", r"Class names: 101\."),
        ("cat, Cat ", "FGSM: one step", "1/255", "twice"),
        ("cat\ndog", "pgd", "1/255", 'there is no attack "pgd" here'),
        ("cat\ndog", "FGSM: one step", "a lot", "a lot"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(models, image, classes, choice, eps, words):
    with pytest.raises((ConfigError, ValueRangeError), match=words):
        SideBySide(models).attack(image, classes, choice, eps)


def test_what_is_no_image_is_refused(models):
    with pytest.raises(DataError, match="no readable image"):
        SideBySide(models).attack(b"<html>", "cat, dog", "FGSM: one step", "1/255")


# The page


def test_a_click_shows_message_and_parts_of_both_models(models, image, tmp_path):
    (tmp_path / "image.png").write_bytes(image)
    page = SideBySide(models)
    good = answer(page, str(tmp_path / "image.png"), "cat, $d$ <b>og</b>", "FGSM: one step", "1/255")
    assert len(good) == 1 + 6 * 2
    assert good[0] == ""
    assert r"\$d\$ \<b\>og" in good[1] or "cat" in good[1]
    assert "<b>" not in good[1]
    assert set(good[5]) == {"cat", "$d$ <b>og</b>"}
    for path, classes, words in (
        (None, "cat, dog", "There is no image yet"),
        (str(tmp_path / "image.png"), "*cat*", "Class names: 1."),
        (__file__, "cat, dog", "no readable image"),
    ):
        message, *rest = answer(page, path, classes, "FGSM: one step", "1/255")
        assert words in message
        assert rest == [None] * 12


def test_without_gradio_the_extra_is_named(models, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    with pytest.raises(MissingDependencyError, match=r"needs the package gradio.*\n.*ironclip\[demo\]"):
        build_page(SideBySide(models), [], tmp_path)


def test_the_page_asks_and_shows_what_a_click_needs(models, tmp_path):
    pytest.importorskip("gradio", reason='not installed: pip install "ironclip[demo]"')
    page = build_page(SideBySide(models), specimens(1), tmp_path)
    (click,) = [each for each in page.fns.values() if each.api_name == "attack"]
    assert [block.elem_id for block in click.inputs] == ["image", "classes", "attack", "eps"]
    assert len(click.outputs) == len(answer(SideBySide(models), None, "", "", ""))
    assert not page.analytics_enabled


# Bundled pictures


def test_specimens_are_of_different_classes_and_among_their_names(tmp_path):
    found = specimens(3)
    assert len(found) == len({one.name for one in found}) == 6
    for one in found:
        assert one.name in one.classes
        assert 2 <= len(one.classes) <= CLASSES
        again = Image.open(one.save(tmp_path))
        assert again.size == (32, 32)
        assert torch.equal(torch.tensor(np.array(again)), torch.tensor(np.array(one.image)))
