"""Runs that tune prompts or adapters: what they leave, that they resume bit for bit, averages, and few shots."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from ironclip.models.pieces import TENSORS
from ironclip.models.sources import load_model
from ironclip.models.zero_shot import encode_classes
from ironclip.training.averaging import average_of, keep_average
from ironclip.training.checkpoint import FILE
from ironclip.training.engine import Trainer

NAMES = ("cat", "dog", "bird")
METHODS = {
    "apt": {"length": 2},
    "tecoa_vp": {"tokens": 2},
    "r_adapter": {"rank": 4, "decay": 0.5},
    "fap": {},
}


class StopError(Exception):
    """What a test stops a run with."""


def sizes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != FILE)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_broke_off_ends_as_if_it_had_not(name, run, monkeypatch, log_of):
    changes = {"method": {"name": name, **METHODS[name]}, "optimisation.steps": 5, "select": "best"}
    straight = run(changes, out="straight")
    step, todo = Trainer.step, [3]

    def stopping(self, samples, epoch):
        if self.progress.step in todo:
            todo.clear()
            raise StopError
        return step(self, samples, epoch)

    monkeypatch.setattr(Trainer, "step", stopping)
    with pytest.raises(StopError):
        run(changes, out="stopped")
    stopped = run(changes, out="stopped")
    for part in ("model/" + TENSORS, "model/pieces.json", "result.json"):
        assert (stopped / part).read_bytes() == (straight / part).read_bytes(), part
    found, expected = load_file(stopped / FILE), load_file(straight / FILE)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
    assert repr(log_of(stopped)) == repr(log_of(straight))  # NaN is not equal to itself
    assert sizes(stopped) < 1_000_000
    assert json.loads((stopped / "run.json").read_text())["trains"] in ("prompts", "adapters")


def test_prompts_of_a_published_size_are_small(tmp_path):
    """16 words and TeCoA's frame and 100 tokens on ViT-B at 224, both below a megabyte."""
    from ironclip.models.prompts import FreePrompts
    from ironclip.models.visual_prompt import PixelFrame

    words = FreePrompts(text=[torch.zeros(16, 512)] * 9, image=[torch.zeros(2, 768)] * 9)
    visual = FreePrompts(image=[torch.zeros(100, 768)], frame=PixelFrame.drawn(224, 30, seed=0))
    for prompts in (words, visual):
        assert 4 * sum(parameter.numel() for parameter in prompts.parameters()) < 1_000_000


def test_a_run_comes_back_as_its_base_with_its_prompts(run, content, model_folder):
    out = run({"method": {"name": "apt", "length": 2}})
    model = load_model(f"run:{out}")
    assert model.fast_path == "on"
    tuned = encode_classes(model, NAMES, ["a photo of a {}."])
    assert not torch.allclose(tuned, encode_classes(load_model(f"local-dir:{model_folder}"), NAMES, ["{}."]))
    weights = load_model(f"local-dir:{model_folder}").clip.state_dict()
    assert all(torch.equal(value, model.clip.state_dict()[name]) for name, value in weights.items())


def test_adapters_are_saved_averaged_and_scaled(trainer, run):
    changes = {"method": {"name": "r_adapter", "decay": 0.5, "test_scale": 0.25}, "data.hold_out": 0}
    out = run(changes)
    one = trainer(changes)
    average = {name: parameter.detach().clone() for name, parameter in one.parameters.items()}
    for epoch, samples in one.batches(strict=False):
        if one.progress.step == one.steps:
            break
        one.step(samples, epoch)
        for name, parameter in one.parameters.items():
            average[name] = 0.5 * average[name] + 0.5 * parameter.detach()
    saved = load_file(out / "model" / TENSORS)
    assert set(saved) == set(average)
    for name, value in saved.items():
        torch.testing.assert_close(value, 0.25 * average[name], rtol=1e-5, atol=1e-8)


def test_validation_sees_what_is_saved_and_training_goes_on_from_what_was_tuned(trainer):
    one = trainer({"method": {"name": "r_adapter", "decay": 0.5}})
    epoch, samples = next(one.batches(strict=False))
    one.step(samples, epoch)
    before = {name: parameter.detach().clone() for name, parameter in one.parameters.items()}
    expected = {name: value.detach().clone() for name, value in one.evaluated().items()}
    with one.as_evaluated():
        assert all(torch.equal(expected[name], parameter) for name, parameter in one.parameters.items())
        assert any(not torch.equal(before[name], parameter) for name, parameter in one.parameters.items())
    assert all(torch.equal(before[name], parameter) for name, parameter in one.parameters.items())


def test_methods_of_towers_are_evaluated_as_they_are(trainer):
    one = trainer()
    assert all(value is one.parameters[name] for name, value in one.evaluated().items())


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_an_average_in_closed_form(kind):
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    settings = {"sgd": (torch.optim.SGD, 0.1), "adam": (torch.optim.Adam, 0.1)}[kind]
    optimiser = settings[0]([parameter], lr=settings[1])
    keep_average(optimiser, 0.9)
    assert average_of(optimiser, parameter) is parameter
    expected = 1.0
    for _ in range(3):
        parameter.grad = torch.ones(1)
        optimiser.step()
        expected = 0.9 * expected + 0.1 * parameter.item()
        assert average_of(optimiser, parameter).item() == pytest.approx(expected, rel=1e-6)


def test_shots_are_so_many_of_each_class_and_none_held_out(trainer):
    one = trainer({"data.shots": 2})
    assert sorted(one.data.labels) == [0, 0, 1, 1, 2, 2]
    assert not set(one.data.keys) & set(one.held_out.keys)
    again, other = trainer({"data.shots": 2}), trainer({"data.shots": 2, "seed": 1})
    assert again.data.keys == one.data.keys != other.data.keys


def test_a_recipe_without_shots_resolves_as_before_there_were_any(recipe):
    assert "shots" not in recipe().resolved()["data"]
    assert recipe({"data.shots": 4}).resolved()["data"]["shots"] == 4


def test_templates_are_drawn_by_epoch_and_key(trainer):
    templates = [f"a photo {number} of a {{}}." for number in range(8)]
    one = trainer({"method": {"name": "r_adapter"}, "data.templates": templates})
    _, samples = next(one.batches(strict=False))
    first, again = one._batch(samples, 0).texts, one._batch(samples[::-1], 0).texts[::-1]
    assert first == list(again)
    assert first != one._batch(samples, 1).texts
    assert len({text.split()[2] for text in first}) > 2
    for text, sample in zip(first, samples, strict=True):
        assert NAMES[sample.label] in text
