"""A text tower learns where its targets lie, in any template, and a broken run ends as one that never broke."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from ironclip.errors import ConfigError, ResumeError, RunFailedError, ShapeError
from ironclip.models.clip import CLIPModel
from ironclip.pretraining import language
from ironclip.pretraining.language import RESULT, LanguageSettings, distil, draw, measure
from ironclip.pretraining.phrases import Phrases
from ironclip.pretraining.targets import Targets
from ironclip.registry import build
from ironclip.training.checkpoint import FILE

NAMES = ("zero", "one", "two", "cat", "guinea pig", "fire engine")
WORDS = ("tree", "old house", "river", "stone")
SENTENCES = ("two dogs run on the beach", "a man in a red shirt")
TEMPLATES = ("{}", "a photo of a {}.", "the digit {}, white on black.")
SMALL = LanguageSettings(
    steps=10, batch_size=16, lr=3e-3, warmup_steps=2, templates=TEMPLATES, precision="float32", checkpoint_every=4
)


@pytest.fixture
def targets():
    phrases = Phrases(NAMES, WORDS, SENTENCES)
    rows = torch.randn(len(phrases), 16, generator=torch.Generator().manual_seed(0))
    return Targets(phrases, F.normalize(rows, dim=-1))


class StopError(Exception):
    pass


def stop_after(step, action=None):
    def progress(state):
        if state.step == step:
            if action is None:
                raise StopError
            action()

    return progress


def text_weights(model: CLIPModel):
    return {name: value for name, value in model.clip.state_dict().items() if not name.startswith("visual.")}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]):
    assert set(one) == set(other)
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def log_of(out):
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "texts_per_second"} for line in lines]


# What it learns


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_tower_comes_to_lie_at_its_targets_in_every_template(tiny_clip, targets, tmp_path, precision):
    model = tiny_clip()
    before = {name: value.clone() for name, value in model.clip.state_dict().items()}
    settings = replace(
        SMALL, steps=100, batch_size=48, lr=4e-3, warmup_steps=5, precision=precision, checkpoint_every=1000
    )
    untaught = measure(model, targets, settings)
    result = distil(model, targets, settings, tmp_path)
    assert untaught.class_cosine < 0.3
    assert result.class_cosine > 0.99
    assert result.lowest_class_cosine > 0.97
    assert result.word_cosine > 0.97
    assert result.sentence_cosine > 0.97
    one, other = (
        model.text_features([template.replace("{}", name) for name in NAMES]) for template in ("{}", TEMPLATES[2])
    )
    assert (one * other).sum(dim=1).min() > 0.97  # the digits stay apart in their own template, too
    assert losses_fall(log_of(tmp_path))
    after = model.clip.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not {name for name in changed if name.startswith("visual.") or name == "logit_scale"}
    assert {"token_embedding.weight", "text_projection", "positional_embedding"} <= changed
    assert all(parameter.grad is None for parameter in model.parameters())


def losses_fall(log):
    losses = [line["loss"] for line in log]
    return sum(losses[-10:]) < 0.2 * sum(losses[:10])


def test_measures_are_means_over_what_they_say(tiny_clip, targets, monkeypatch):
    model = tiny_clip()
    result = measure(model, targets, SMALL, steps=3)
    with torch.no_grad():
        classes = torch.stack([
            (model.text_features([template.replace("{}", name) for name in NAMES]) * targets.of(NAMES)).sum(dim=1)
            for template in TEMPLATES
        ])  # fmt: skip
        words = (model.text_features(WORDS) * targets.of(WORDS)).sum(dim=1)
    assert result.class_cosine == pytest.approx(float(classes.mean()), abs=1e-5)
    assert result.lowest_class_cosine == pytest.approx(float(classes.min()), abs=1e-5)
    assert result.word_cosine == pytest.approx(float(words.mean()), abs=1e-5)
    assert result.steps == 3
    monkeypatch.setattr(language, "_MEASURED", 2)  # every second of four
    assert measure(model, targets, SMALL).word_cosine == pytest.approx(float(words[::2].mean()), abs=1e-5)
    monkeypatch.setattr(language, "_BATCH", 5)
    assert measure(model, targets, SMALL).class_cosine == pytest.approx(result.class_cosine, abs=1e-5)


def test_kinds_that_are_not_there_are_not_measured(tiny_clip, targets):
    alone = Targets(Phrases(NAMES), targets.rows[:6])
    result = measure(tiny_clip(), alone, SMALL)
    assert (result.word_cosine, result.sentence_cosine) == (None, None)


# What is drawn


def test_a_batch_is_a_function_of_seed_and_step(targets):
    one = draw(targets.phrases, SMALL, 0, 5)
    assert draw(targets.phrases, SMALL, 0, 5) == one
    assert draw(targets.phrases, SMALL, 0, 6) != one
    assert draw(targets.phrases, SMALL, 1, 5) != one


def test_batches_hold_the_shares_asked_for_and_sentences_stand_as_they_are(targets):
    settings = replace(SMALL, batch_size=100, class_share=0.4, sentence_share=0.1)
    texts, rows = draw(targets.phrases, settings, 0, 0)
    everything = targets.phrases.all
    assert [sum(low <= row < high for row in rows) for low, high in ((0, 6), (6, 10), (10, 12))] == [40, 50, 10]
    for text, row in zip(texts, rows, strict=True):
        if row >= 10:
            assert text == everything[row]
        else:
            assert text in {template.replace("{}", everything[row]) for template in TEMPLATES}
    assert {text.replace(everything[row], "{}") for text, row in zip(texts, rows, strict=True) if row < 10} == {
        *TEMPLATES
    }
    assert set(range(12)) == {row for step in range(5) for row in draw(targets.phrases, settings, 0, step)[1]}


@pytest.mark.parametrize(
    ("phrases", "counts"),
    [
        (Phrases(NAMES), (100, 0, 0)),
        (Phrases(NAMES, WORDS), (25, 75, 0)),
        (Phrases(NAMES, (), SENTENCES), (85, 0, 15)),
    ],
)
def test_the_share_of_what_is_not_there_goes_to_the_rest(phrases, counts):
    _, rows = draw(phrases, replace(SMALL, batch_size=100), 0, 0)
    first, second = len(phrases.class_names), len(phrases.class_names) + len(phrases.words)
    found = (
        sum(row < first for row in rows),
        sum(first <= row < second for row in rows),
        sum(row >= second for row in rows),
    )
    assert found == counts


# Runs that break off


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_run_that_broke_off_ends_as_if_it_had_not(tiny_clip, targets, tmp_path, precision):
    settings = replace(SMALL, precision=precision)
    straight = tiny_clip()
    wanted = distil(straight, targets, settings, tmp_path / "straight")
    with pytest.raises(StopError):
        distil(tiny_clip(), targets, settings, tmp_path / "broken", progress=stop_after(7))
    assert log_of(tmp_path / "broken")[-1]["step"] == 7  # the checkpoint is of step 4
    resumed = tiny_clip()
    assert distil(resumed, targets, settings, tmp_path / "broken") == wanted
    assert_same(text_weights(resumed), text_weights(straight))
    assert_same(load_file(tmp_path / "broken" / FILE), load_file(tmp_path / "straight" / FILE))
    assert log_of(tmp_path / "broken") == log_of(tmp_path / "straight")


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_leaves_a_checkpoint_of_the_step_just_done(tiny_clip, targets, tmp_path, number, error):
    before = signal.getsignal(number)
    with pytest.raises(error):
        distil(tiny_clip(), targets, SMALL, tmp_path, progress=stop_after(6, lambda: os.kill(os.getpid(), number)))
    assert signal.getsignal(number) == before
    assert not (tmp_path / RESULT).exists()
    steps = []
    distil(tiny_clip(), targets, SMALL, tmp_path, progress=lambda state: steps.append(state.step))
    assert steps == [7, 8, 9, 10]


def test_a_run_that_is_done_gives_its_weights_and_is_not_done_again(tiny_clip, targets, tmp_path):
    first = tiny_clip()
    result = distil(first, targets, SMALL, tmp_path)
    again, steps = tiny_clip(), []
    assert distil(again, targets, SMALL, tmp_path, progress=steps.append) == result
    assert steps == []
    assert_same(text_weights(again), text_weights(first))
    (tmp_path / RESULT).unlink()  # killed while it was measured
    assert distil(tiny_clip(), targets, SMALL, tmp_path, progress=steps.append) == result
    assert steps == []


def test_seeds_differ_and_the_rhythm_of_checkpoints_does_not(tiny_clip, targets, tmp_path):
    models = {name: tiny_clip() for name in ("one", "rhythm", "seed")}
    distil(models["one"], targets, SMALL, tmp_path / "one")
    distil(models["rhythm"], targets, replace(SMALL, checkpoint_every=3), tmp_path / "rhythm")
    distil(models["seed"], targets, SMALL, tmp_path / "seed", seed=1)
    assert_same(text_weights(models["one"]), text_weights(models["rhythm"]))
    assert not torch.equal(models["one"].clip.text_projection, models["seed"].clip.text_projection)
    distil(tiny_clip(), targets, replace(SMALL, checkpoint_every=3), tmp_path / "one")  # no other run


@pytest.mark.parametrize("other", ["settings", "targets", "seed", "weights"])
def test_another_run_is_not_gone_on_with(tiny_clip, targets, tmp_path, other):
    with pytest.raises(StopError):
        distil(tiny_clip(), targets, SMALL, tmp_path, progress=stop_after(5))
    settings = replace(SMALL, lr=1e-3) if other == "settings" else SMALL
    given = Targets(targets.phrases, targets.rows.flip(0)) if other == "targets" else targets
    model = tiny_clip(seed=1) if other == "weights" else tiny_clip()
    with pytest.raises(ResumeError, match="another recipe, of other data or of other weights"):
        distil(model, given, settings, tmp_path, seed=int(other == "seed"))


def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_the_weights(tiny_clip, targets, tmp_path):
    rows = targets.rows.clone()
    rows[0] = float("nan")
    model = tiny_clip()
    before = model.clip.text_projection.detach().clone()
    with pytest.raises(RunFailedError, match=r"not finite in step 1.*\n.*checkpoint.safetensors"):
        distil(model, Targets(targets.phrases, rows), SMALL, tmp_path)
    assert torch.equal(model.clip.text_projection, before)
    assert log_of(tmp_path) == [{"step": 1, "lr": SMALL.lr / 2, "loss": None, "gradient_norm": None}]


# What it refuses


def test_targets_of_another_width_are_refused(tiny_clip, targets, tmp_path):
    with pytest.raises(ShapeError, match="width 8 for a model whose embedding has width 16"):
        distil(tiny_clip(), Targets(targets.phrases, targets.rows[:, :8]), SMALL, tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, r"language\.steps is 0"),
        ({"batch_size": 0}, r"language\.batch_size is 0"),
        ({"checkpoint_every": 0}, r"language\.checkpoint_every is 0"),
        ({"lr": 0.0}, r"lr is 0\.0"),
        ({"weight_decay": -1.0}, r"weight_decay -1\.0"),
        ({"warmup_steps": 10}, "warmup_steps is 10, of 10 steps"),
        ({"class_share": 0.0}, r"class_share is 0\.0"),
        ({"class_share": 0.9, "sentence_share": 0.2}, r"sentence_share 0\.2"),
        ({"precision": "fp16"}, "precision is .fp16"),
        ({"templates": ("a photo",)}, "has no {}"),
        ({"templates": ()}, "no prompt template"),
    ],
)
def test_settings_are_checked(change, words):
    with pytest.raises(ConfigError, match=words):
        replace(SMALL, **change)


def test_settings_come_out_of_a_recipe():
    assert build(LanguageSettings, {"steps": 500, "templates": ["a {}"]}, where="language").templates == ("a {}",)
    with pytest.raises(ConfigError, match=r"Did you mean .steps"):
        build(LanguageSettings, {"step": 500}, where="language")
