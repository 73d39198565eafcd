"""`ironclip eval-task` from the words of the user to the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ironclip.models.sources import load_model, save_model
from ironclip.models.tiny_vlm import DecoderSizes, TinyVLM, Vocabulary, save_tiny_vlm
from ironclip.models.vlm_sources import load_vlm, vlm_identity
from made_up_llava import write_llava

WORDS = ["how many objects are there what color is the shape where red circle 1 2 3 yes no a picture of number"]


@pytest.fixture
def folder(ironclip, tiny_clip, tmp_path):
    """A decoder with random weights on a tower, in the folder where commands run; and another tower."""
    save_model(tiny_clip(), tmp_path / "tower")
    save_model(tiny_clip(seed=3), tmp_path / "tuned")
    vlm = TinyVLM(
        load_model("local-dir:tower"), Vocabulary.of(WORDS), DecoderSizes(width=32, layers=1, heads=2, length=60)
    )
    save_tiny_vlm(vlm, tmp_path / "vlm")
    return tmp_path


def test_answers_are_measured_on_both_towers_and_compared(ironclip, folder):
    for name, words in (("original", ()), ("fare", ("--tower", "local-dir:tuned"))):
        result = ironclip(
            "eval-task", "answer", "vlm", *words, "--name", name, "--limit", 4, "--steps", 2, "--out", f"runs/{name}"
        )
        assert result.code == 0, result.err
        assert "Adversary: Linf 2/255" in result.err
        assert "accuracy" in result.out
        assert f"ironclip report runs/{name}" in result.out
    records = [json.loads((folder / "runs" / name / "task.json").read_text()) for name in ("original", "fare")]
    assert records[0]["model"]["sha256"] != records[1]["model"]["sha256"]
    page = ironclip("report", "runs/original", "runs/fare", "--out", "page")
    assert page.code == 0, page.err
    assert "minus original" in (folder / "page" / "report.md").read_text()
    again = ironclip("eval-task", "answer", "vlm", "--limit", 4, "--steps", 2, "--out", "runs/original", "--json")
    told = json.loads(again.out)
    assert told["figures"]["images"] == 4


@pytest.mark.parametrize(
    "words",
    [
        ("targeted", "vlm", "--target", "red", "--steps", 2, "--limit", 3),
        ("caption", "vlm", "--attack", "patches", "--steps", 2, "--limit", 3),
        ("retrieval", "local-dir:tower", "--attacked", "both", "--attack", "fgsm", "--limit", 12),
        ("segmentation", "local-dir:tower", "--attack", "apgd:steps=2", "--limit", 3),
    ],
)
def test_every_task_runs_and_is_reported(ironclip, folder, words):
    result = ironclip("eval-task", *words, "--out", "run", "--json")
    assert result.code == 0, result.err
    assert (folder / "run" / "figures.json").is_file()
    assert ironclip("report", "run", "--out", "page").code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("caption", "vlm", "--target", "red"), "--target with the task"),
        (("targeted", "vlm"), "has a sentence"),
        (("retrieval", "local-dir:tower", "--tower", "x"), "Give the CLIP itself"),
        (("caption", "vlm", "--attack", "pgd"), "Give ensemble or patches"),
        (("segmentation", "local-dir:tower", "--attack", "standard"), "a list of attacks on classes"),
        (("caption", "vlm", "--tower", "local-dir:tuned", "--resolution", 48), "tiny-vlm at a resolution of 48"),
        (("caption", "vlm", "--resolution", 48), "without another tower"),
        (("caption", "nowhere"), "is no vision-language model"),
        (("answer", "vlm", "--data", "bundled:digits?split=test"), "brings no questions"),
        (("segmentation", "local-dir:tower", "--data", "cityscapes:x"), "is no source of masks"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(ironclip, folder, words, said):
    result = ironclip("eval-task", *words)
    assert result.code == 2
    assert said in result.err
    assert "Traceback" not in result.err


def test_a_llava_is_asked_on_a_tower_of_another_resolution_only_where_that_is_meant(ironclip, tiny_clip, folder):
    pytest.importorskip("transformers", reason='transformers is not installed: pip install "ironclip[hf]"')
    write_llava(folder / "llava")
    save_model(tiny_clip(vision={"image_size": 48}), folder / "wide")
    words = ("eval-task", "caption", "llava", "--tower", "local-dir:wide", "--steps", 1, "--limit", 3, "--out", "run")
    refused = ironclip(*words)
    assert refused.code == 2
    assert "pass resolution=48" in refused.err
    result = ironclip(*words, "--resolution", 48)
    assert result.code == 0, result.err
    assert json.loads((folder / "run" / "task.json").read_text())["threat"]["record"]["acting_size"] == [48, 48]


def test_a_decoder_finds_its_tower_and_its_identity_follows_the_tower(folder):
    model = load_vlm("vlm")
    own = vlm_identity(model)
    assert vlm_identity(load_vlm("vlm")) == own
    other = load_vlm("vlm", tower="local-dir:tuned")
    assert vlm_identity(other) != own
    other.restore_tower()
    assert vlm_identity(other) == own
    with torch.no_grad():
        next(iter(model.decoder.parameters())).add_(1)
    assert vlm_identity(model) != own


def test_the_page_on_tasks_names_commands_and_options_that_exist(ironclip):
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
    lines = [line.split() for line in page.splitlines() if line.startswith("    ironclip ")]
    assert {words[1] for words in lines} == {"eval-task", "export"}
    for words in lines:
        known = ironclip(words[1], "--help").out
        for option in (word for word in words if word.startswith("--")):
            assert f"  {option} " in known, option
