"""Losses and gradients that are not finite: the step is skipped and counted, three in a row end the run."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from ironclip.errors import RunFailedError
from ironclip.methods.base import METHODS

CLEAN = METHODS.get("clean")


def result_of(out):
    return json.loads((out / "result.json").read_text())


def spoil_loss(monkeypatch, method, steps, value=math.nan):
    """Multiply the loss of the steps with these numbers by NaN, or add an infinity to it."""
    loss, calls = method.loss, []

    def spoiled(self, views):
        calls.append(1)
        terms = dict(loss(self, views))
        if len(calls) - 1 in steps:
            terms = {name: term * value if math.isnan(value) else term + value for name, term in terms.items()}
        return terms

    monkeypatch.setattr(method, "loss", spoiled)


def test_a_step_without_finite_loss_changes_nothing_and_is_counted(trainer, weights, monkeypatch):
    spoil_loss(monkeypatch, CLEAN, {1})
    one = trainer({"method": {"name": "clean"}, "optimisation.weight_decay": 0.1})
    epoch, samples = next(one.batches(strict=False))
    one.step(samples, epoch)
    before, state = weights(one), one.optimiser.state_dict()
    moments = [value.clone() for entry in state["state"].values() for value in entry.values()]
    logged = one.step(samples, epoch)
    assert math.isnan(logged["loss"])
    assert all(torch.equal(before[name], parameter) for name, parameter in one.parameters.items())
    after = [value for entry in one.optimiser.state_dict()["state"].values() for value in entry.values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, after, strict=True))
    assert (one.progress.skipped, one.progress.skipped_in_a_row, one.progress.step) == (1, 1, 2)
    assert math.isfinite(one.step(samples, epoch)["loss"])
    assert (one.progress.skipped, one.progress.skipped_in_a_row) == (1, 0)
    assert not torch.equal(before["visual.proj"], one.parameters["visual.proj"])


def test_a_step_without_finite_gradient_is_skipped(trainer, weights, monkeypatch):
    """The loss is finite, its derivative is not: sqrt at 0."""
    loss = CLEAN.loss

    def steep(self, views):
        terms = dict(loss(self, views))
        return {"ce": terms["ce"] + (0 * terms["ce"]).sqrt()}

    monkeypatch.setattr(CLEAN, "loss", steep)
    one = trainer({"method": {"name": "clean"}})
    epoch, samples = next(one.batches(strict=False))
    before = weights(one)
    logged = one.step(samples, epoch)
    assert math.isfinite(logged["loss"])
    assert not math.isfinite(logged["gradient_norm"])
    assert one.progress.skipped == 1
    assert all(torch.equal(before[name], parameter) for name, parameter in one.parameters.items())


def test_an_infinite_loss_is_not_finite(trainer, monkeypatch):
    spoil_loss(monkeypatch, CLEAN, {0}, math.inf)
    one = trainer({"method": {"name": "clean"}})
    epoch, samples = next(one.batches(strict=False))
    assert one.step(samples, epoch)["loss"] == math.inf
    assert one.progress.skipped == 1


def test_skipped_steps_are_in_the_result(run, log_of, monkeypatch):
    spoil_loss(monkeypatch, CLEAN, {1, 3})
    out = run({"method": {"name": "clean"}})
    assert result_of(out)["skipped_steps"] == 2
    assert [math.isnan(entry["loss"]) for entry in log_of(out) if "loss" in entry] == [False, True, False, True]


def test_three_in_a_row_end_the_run_with_the_weights_before_them(run, trainer, weights, monkeypatch, tmp_path):
    changes = {"method": {"name": "clean"}, "optimisation.steps": 8, "checkpoint.every": 100}
    one = trainer(changes)
    for (epoch, samples), _ in zip(one.batches(strict=False), range(2), strict=False):
        one.step(samples, epoch)
    spoil_loss(monkeypatch, CLEAN, {2, 3, 4})
    with pytest.raises(RunFailedError, match=r"not finite in 3 steps in a row \(step 5\)") as caught:
        run(changes)
    path = tmp_path / "run" / "checkpoint.safetensors"
    assert str(path) in caught.value.remedy
    kept = load_file(path)
    assert all(torch.equal(kept[f"model.{name}"], value) for name, value in weights(one).items())
    assert not (tmp_path / "run" / "result.json").exists()
    assert caught.value.exit_code == 1


def test_two_in_a_row_do_not_end_the_run(run, monkeypatch):
    spoil_loss(monkeypatch, CLEAN, {0, 1, 3, 4})
    out = run({"method": {"name": "clean"}, "optimisation.steps": 6})
    assert result_of(out)["skipped_steps"] == 4
