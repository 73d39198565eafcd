"""tiny-vlm learns what it is told, and a broken run ends as one that never broke."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ironclip.data.bundled import shapes
from ironclip.errors import ConfigError, DataError, ResumeError
from ironclip.models.sources import load_model, save_model
from ironclip.models.tiny_vlm import WEIGHTS, TinyVLM, Vocabulary, load_tiny_vlm
from ironclip.models.vlm import CAPTION_PROMPT
from ironclip.pretraining.vlm.lessons import Material, draw, read_material
from ironclip.pretraining.vlm.recipe import SourceSection, VlmRecipe, load_vlm_recipe
from ironclip.pretraining.vlm.train import RESULT, train_vlm

TINY_VLM = Path(__file__).parents[2] / "recipes" / "vlm" / "tiny-vlm.yaml"


@pytest.fixture(scope="module")
def tower(tiny_clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tower")
    save_model(tiny_clip(), folder)
    return f"local-dir:{folder}"


@pytest.fixture
def recipe(tower):
    def make(**changes):
        content = {
            "tower": tower,
            "decoder": {"width": 32, "layers": 1, "heads": 2, "length": 48},
            "rarest": 1,
            "sources": {"said": {"source": "wds:{data}/said?split=train", "per_batch": 4}},
            "steps": 6,
            "warmup_steps": 1,
            "lr": 3e-3,
            "precision": "float32",
            "checkpoint_every": 4,
        }
        return VlmRecipe.model_validate(content | changes)

    return make


@pytest.fixture(scope="module")
def painted():
    """Twenty scenes with their questions, read as the bundled set gives them, without painting all."""
    keys = tuple(shapes.key_of("scenes_train", index) for index in range(20))
    scenes = [shapes.scene("scenes_train", index) for index in range(20)]
    pixels = torch.stack([torch.from_numpy(scene.pixels.copy()).permute(2, 0, 1) for scene in scenes])
    settings = SourceSection(source="bundled:shapes?split=scenes_train", per_batch=8, questions=0.5)
    captions = [(shapes.caption(scene),) for scene in scenes]
    return Material("scenes", keys, pixels, captions, [shapes.questions(scene) for scene in scenes], settings)


def weights(out):
    return load_file(out / "model" / WEIGHTS)


def test_a_batch_is_a_function_of_the_step_and_answers_belong_to_their_image(painted):
    drawn = [draw([painted], 0, step) for step in range(10)]
    again = draw([painted], 0, 3)
    assert torch.equal(drawn[3].pixels, again.pixels)
    assert (drawn[3].prompts, drawn[3].answers) == (again.prompts, again.answers)
    assert drawn[3].prompts != draw([painted], 1, 3).prompts
    seen: Counter[int] = Counter()
    for batch in drawn:
        for pixels, prompt, answer in zip(batch.pixels, batch.prompts, batch.answers, strict=True):
            (row,) = torch.where((painted.pixels.float() / 255 == pixels).flatten(1).all(dim=1))[0].tolist()
            seen[row] += 1
            known = {(CAPTION_PROMPT, painted.captions[row][0]), *painted.questions[row]}
            assert (prompt, answer) in known
    assert seen == Counter(dict.fromkeys(range(20), 4))  # 80 draws: four whole epochs
    captions = sum(batch.prompts.count(CAPTION_PROMPT) for batch in drawn)
    assert 25 <= captions <= 55


def test_it_learns_what_it_is_told(recipe, data_root, tower, tmp_path):
    losses = []
    train_vlm(
        recipe(steps=60, lr=1e-2, checkpoint_every=1000),
        tmp_path,
        data_root=str(data_root),
        progress=lambda state: losses.append(state.loss),
    )
    assert losses[-1] < losses[0] / 3
    model = load_tiny_vlm(tmp_path / "model", load_model(tower))
    said = model.generate(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), [CAPTION_PROMPT] * 2)
    assert all(text.startswith(("number", "a picture")) for text in said)
    result = json.loads((tmp_path / RESULT).read_text())
    assert result["steps"] == 60
    assert result["words"] == Vocabulary.SPECIAL + len(model.vocabulary.words)
    assert json.loads((tmp_path / "run.json").read_text())["data"] == {"said": 10}


@pytest.mark.parametrize("stop", [4, 5])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(recipe, data_root, tmp_path, stop):
    def interrupt(state):
        if state.step == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    train_vlm(recipe(), tmp_path / "straight", data_root=str(data_root))
    with pytest.raises(SystemExit):
        train_vlm(recipe(), tmp_path / "stopped", data_root=str(data_root), progress=interrupt)
    assert not (tmp_path / "stopped" / RESULT).exists()
    train_vlm(recipe(), tmp_path / "stopped", data_root=str(data_root))
    straight, stopped = weights(tmp_path / "straight"), weights(tmp_path / "stopped")
    assert all(torch.equal(value, stopped[name]) for name, value in straight.items())


def test_a_blind_decoder_is_shown_no_image(recipe, data_root, tmp_path):
    seen = []

    def look(model, pixels, lesson):
        seen.append(pixels)
        return predict(model, pixels, lesson)

    predict = TinyVLM.predict
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TinyVLM, "predict", look)
        train_vlm(recipe(blind=True, steps=2), tmp_path, data_root=str(data_root))
    assert len(seen) == 2
    assert all((pixels == 0.5).all() for pixels in seen)


def test_another_recipe_does_not_go_on_with_a_run(recipe, data_root, tmp_path):
    train_vlm(recipe(steps=2), tmp_path, data_root=str(data_root))
    with pytest.raises(ResumeError, match="run of another recipe"):
        train_vlm(recipe(steps=3), tmp_path, data_root=str(data_root))


def test_data_that_do_not_fit_are_refused(data_root):
    def read(source, resolution=32, **changes):
        section = SourceSection.model_validate({"source": source, "per_batch": 4} | changes)
        return read_material("x", section, data_root=str(data_root), resolution=resolution, unreadable={})

    with pytest.raises(DataError, match=r'is 32x32, expected 16x16\.\n.*resize=16 to source "x"'):
        read("wds:{data}/said?split=train", 16)
    with pytest.raises(DataError, match=r'of source "x" has no caption'):
        read("wds:{data}/toy?split=train")
    with pytest.raises(ConfigError, match=r"has 10 images, fewer than the 11"):
        read("wds:{data}/said?split=train", per_batch=11)


def test_the_bundled_recipe_is_one():
    recipe = load_vlm_recipe(TINY_VLM)
    assert recipe.optimisation().batch_size == 96
    assert recipe.tower == "tiny"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stepss=3", r'unknown key "stepss"\. Did you mean "steps"'),
        ("sources.flickr8k.questions=0.5", "questions are asked of bundled:shapes only"),
        ("warmup_steps=4500", "warmup_steps is 4500, of 4500 steps"),
        ("sources={}", "sources is empty"),
        ("decoder.heads=5", "5 heads"),
    ],
)
def test_what_a_recipe_may_not_say(override, words):
    with pytest.raises(ConfigError, match=words):
        load_vlm_recipe(TINY_VLM, [override])
