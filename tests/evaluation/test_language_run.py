"""Captions, answers and sentences through the driver into a run folder, on a decoder with random weights."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError, DataError, ResumeError
from ironclip.evaluation import task_run
from ironclip.evaluation.language_run import LanguageRequest, evaluate_language
from ironclip.evaluation.task_store import TaskStore
from ironclip.models.tiny_vlm import DecoderSizes, TinyVLM, Vocabulary

WORDS = ["how many objects are there what color is the shape where red circle 1 2 3 yes no a picture of number"]
LINF, TARGETED = ThreatModel(eps="8/255"), ThreatModel(eps="16/255", goal="targeted")
SAID = "bundled:shapes?split=scenes_test"


@pytest.fixture(scope="module")
def vlm(tiny_clip):
    model = TinyVLM(tiny_clip(), Vocabulary.of(WORDS), DecoderSizes(width=32, layers=1, heads=2, length=60))
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=random))
    return model


@pytest.fixture
def request_for(tmp_path):
    def make(**changes):
        settings = {
            "model": "made up",
            "data": SAID,
            "task": "answer",
            "threat": LINF,
            "out": tmp_path / "run",
            "limit": 4,
            "steps": 2,
            "save": "all",
            "tile": 16,
        }
        return LanguageRequest(**settings | changes)

    return make


def test_rows_are_what_was_said_and_figures_are_their_means(vlm, request_for):
    store = evaluate_language(request_for(), model=vlm)
    rows = store.rows()
    assert len(rows) == 4 == len(store.image_ids())
    images = store.read_images(store.image_ids())
    for row in rows:
        clean, attacked = (torch.from_numpy(side)[None] for side in images[row["image_id"]])
        assert vlm.generate(clean, [row["prompt"]], max_new_tokens=5) == [row["text_clean"]]
        assert vlm.generate(attacked, [row["prompt"]], max_new_tokens=5) == [row["text_attacked"]]
        assert row["score_attacked"] <= row["score_clean"]
        assert LINF.contains(attacked, clean).all()
        assert row["norm"] == pytest.approx((attacked - clean).abs().max().item(), abs=1e-7)
    told = json.loads((store.path / "figures.json").read_text())
    (figure,) = told["figures"]
    assert figure["clean"]["estimate"] == pytest.approx(sum(row["score_clean"] for row in rows) / 4)


def test_a_run_that_was_killed_ends_as_one_that_was_not_and_tiles_do_not_matter(
    vlm, request_for, tmp_path, monkeypatch
):
    monkeypatch.setattr(task_run, "CHUNK", 2)
    whole = evaluate_language(request_for(), model=vlm)

    def stop(state):
        if state.done == 2:
            raise KeyboardInterrupt

    broken = request_for(out=tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        evaluate_language(broken, model=vlm, progress=stop)
    assert len(TaskStore.open(broken.out).rows()) == 2
    assert evaluate_language(broken, model=vlm).rows() == whole.rows()
    assert evaluate_language(request_for(out=tmp_path / "wide", tile=32), model=vlm).rows() == whole.rows()
    with pytest.raises(ResumeError, match="threat"):
        evaluate_language(dataclasses.replace(broken, threat=ThreatModel(eps="4/255")), model=vlm)


def test_captions_are_scored_over_the_whole_set(vlm, request_for):
    for attack in ("ensemble", "patches"):
        store = evaluate_language(request_for(task="caption", attack=attack, out=request_for().out / attack), model=vlm)
        assert {row["prompt"] for row in store.rows()} == {"Provide a short caption for this image."}
        assert store.record.settings["metric"].startswith("cider-d")


def test_a_sentence_is_put_in(vlm, request_for):
    store = evaluate_language(
        request_for(task="targeted", attack="sentence", threat=TARGETED, target="red", steps=15), model=vlm
    )
    rows = store.rows()
    for row in rows:
        for when in ("clean", "attacked", "rounded"):
            assert row[f"{when}_contains"] == ("red" in row[f"text_{when}"])
        assert (row["iterations"] >= 0) <= row["attacked_begins"]
    rates = json.loads((store.path / "figures.json").read_text())["success"]
    first = rates["the sentence stands in the answer"]
    assert first["denominator"] == sum(not row["clean_contains"] for row in rows)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "targeted"}, "goes with attack"),
        ({"target": "red"}, "has a sentence"),
        ({"attack": "sentence"}, "goes with attack"),
        ({"search_dtype": "float16"}, "Give one of float32, bfloat16"),
        ({"threat": ThreatModel(integer=True)}, "is not played here"),
    ],
)
def test_requests_that_do_not_fit_are_refused(request_for, changes, words):
    with pytest.raises(ConfigError, match=words):
        request_for(**changes)


def test_one_image_is_no_set(vlm, request_for):
    with pytest.raises(DataError, match="Give two or more"):
        evaluate_language(request_for(limit=1), model=vlm)
