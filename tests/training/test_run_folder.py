"""What a run leaves behind: the record, the log, the model; and which weights are chosen."""

from __future__ import annotations

import hashlib
import json
import math

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from ironclip.errors import ConfigError
from ironclip.models.sources import load_model
from ironclip.training.engine import Trainer
from ironclip.training.validation import Validation


def result_of(out):
    return json.loads((out / "result.json").read_text())


def test_run_folder(run, model_folder, log_of):
    seen = []
    out = run(progress=seen.append, command=["ironclip", "train", "a b.yaml"])
    weights = out / "model" / "open_clip_model.safetensors"
    record, result = json.loads((out / "run.json").read_text()), result_of(out)
    assert result == {
        "steps": 4,
        "images": 32,
        "skipped_steps": 0,
        "unreadable": {},
        "best_step": None,
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    assert record["command"] == "ironclip train 'a b.yaml'"
    assert record["threat_caption"] == "Linf 8/255, native, white-box"
    assert record["model"]["sha256"] == load_model(f"local-dir:{model_folder}").spec.sha256
    assert record["data"]["samples"] == 32
    assert record["data"]["held_out"] == 6
    assert record["data"]["classes"] == 3
    assert record["recipe"]["method"] == {"name": "tecoa"}
    assert len(record["source_sha256"]) == 64
    assert record["versions"]["torch"]

    log = log_of(out)
    assert [(entry["step"], "validation" in entry) for entry in log] == [
        (1, False),
        (2, False),
        (2, True),
        (3, False),
        (4, False),
        (4, True),
    ]
    for entry in log:
        if "validation" not in entry:
            assert set(entry) == {"step", "epoch", "lr", "loss", "ce", "attack_accuracy", "gradient_norm"}
    validations = [entry["validation"] for entry in log if "validation" in entry]
    assert [found["samples"] for found in validations] == [4, 6]  # all of them at the end
    for found in validations:
        assert found["overfitting_gap"] == found["train_attack_accuracy"] - found["robust_accuracy"]
        assert found["robust_accuracy"] <= found["clean_accuracy"]

    assert [(progress.step, progress.steps) for progress in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [progress.robust_accuracy is None for progress in seen] == [True, False, False, False]
    assert seen[-1].robust_accuracy == validations[-1]["robust_accuracy"]
    assert seen[-1].loss == log[-2]["loss"]
    assert all(progress.images_per_second > 0 for progress in seen)


def test_the_model_is_the_last_checkpoint_in_stock_open_clip(run, model_folder):
    out = run()
    kept = load_file(out / "checkpoint.safetensors")
    stock = open_clip.create_model(f"local-dir:{out / 'model'}").state_dict()
    start = load_model(f"local-dir:{model_folder}").clip.state_dict()
    assert {name for name in stock if not torch.equal(stock[name], start[name])} == {
        name.removeprefix("model.") for name in kept if name.startswith("model.")
    }
    for name in stock:
        if f"model.{name}" in kept:
            assert torch.equal(stock[name], kept[f"model.{name}"])
    # The run folder is a model source.
    assert torch.equal(load_model(str(out)).visual.proj, kept["model.visual.proj"])


def test_a_run_is_a_function_of_its_recipe(run):
    first, second, other = run(out="a"), run(out="b"), run({"seed": 1}, out="c")
    assert result_of(first)["weights_sha256"] == result_of(second)["weights_sha256"]
    assert result_of(first)["weights_sha256"] != result_of(other)["weights_sha256"]


def test_a_run_without_labels(run, log_of):
    seen = []
    changes = {"data.train": "wds:{data}/plain?split=train", "method": {"name": "fare"}}
    out = run(changes, progress=seen.append)
    assert all(progress.attack_accuracy is None for progress in seen)
    last = log_of(out)[-1]["validation"]
    assert math.isnan(last["robust_accuracy"])
    assert math.isnan(last["overfitting_gap"])
    assert 0 < last["embedding_cosine"] < 1
    assert json.loads((out / "run.json").read_text())["data"]["classes"] is None


def test_a_run_without_held_out_samples(run, log_of):
    seen = []
    out = run({"data.hold_out": 0}, progress=seen.append)
    assert not [entry for entry in log_of(out) if "validation" in entry]
    assert seen[-1].robust_accuracy is None


def fake_validations(monkeypatch, values, *, labelled=True):
    """Give these values instead of validating, and keep the weights as they are then."""
    kept, nan = [], math.nan

    def validate(self, samples=None):
        value = values[len(kept)]
        kept.append({name: parameter.detach().clone() for name, parameter in self.parameters.items()})
        if labelled:
            return Validation(4, 0.9, value, 0.9, 0.9 - value, 0.5)
        return Validation(4, nan, nan, nan, nan, value)

    monkeypatch.setattr(Trainer, "validate", validate)
    return kept


@pytest.mark.parametrize("labelled", [True, False])
def test_select_best_takes_the_best_validation(labelled, run, monkeypatch):
    kept = fake_validations(monkeypatch, [0.2, 0.5, 0.5, 0.1], labelled=labelled)
    out = run({"select": "best", "validation.every": 1})
    assert result_of(out)["best_step"] == 2  # the first of equals
    saved = load_file(out / "model" / "open_clip_model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in kept[1].items())
    assert not torch.equal(saved["visual.proj"], kept[3]["visual.proj"])


def test_select_last_takes_the_last(run, monkeypatch):
    kept = fake_validations(monkeypatch, [0.2, 0.5, 0.3, 0.1])
    out = run({"validation.every": 1})
    assert result_of(out)["best_step"] is None
    saved = load_file(out / "model" / "open_clip_model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in kept[3].items())


def test_select_best_needs_held_out_samples(run):
    with pytest.raises(ConfigError, match="select"):
        run({"select": "best", "data.hold_out": 0})


def test_validations_that_compete_are_of_the_same_samples(run, log_of):
    out = run({"select": "best"})
    assert len({entry["validation"]["samples"] for entry in log_of(out) if "validation" in entry}) == 1


def test_the_log_is_json_also_where_a_figure_is_missing(run):
    out = run({"data.train": "wds:{data}/plain?split=train", "method": {"name": "fare"}})
    for line in (out / "log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_the_record_holds_the_limit(run):
    out = run(limit=20)
    assert json.loads((out / "run.json").read_text())["recipe"]["data"]["limit"] == 20


def test_the_plain_path_computes_the_same(run, log_of):
    fast, plain = run(out="fast"), run(out="plain", fast=False)
    told = [json.loads((out / "run.json").read_text())["fast_path"] for out in (fast, plain)]
    assert told == ["on", "switched off"]
    first, other = (log_of(out)[0] for out in (fast, plain))
    # Of the first step only: AdamW makes much of the last bits of small gradients.
    assert first == pytest.approx(other, rel=1e-4)
    assert first["gradient_norm"] != other["gradient_norm"]  # another path rounds otherwise


def test_activation_checkpointing_changes_no_bit_and_is_not_another_run(run, log_of):
    plain = run(out="run")
    again = run({"optimisation.checkpoint_activations": True}, out="again")
    weights = [load_file(out / "model" / "open_clip_model.safetensors") for out in (plain, again)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert log_of(plain) == log_of(again)
    assert run({"optimisation.checkpoint_activations": True}, out="run") == plain  # complete: nothing is refused
