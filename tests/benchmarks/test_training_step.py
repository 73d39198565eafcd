"""What is made of two sides that took turns, and that both are what they are called."""

from __future__ import annotations

import json
import os
import sys
from types import SimpleNamespace

import pytest
from benchmarks.sides import Cost, SideError
from benchmarks.training_step import Comparison, Setting, compare, extrapolated, largest_class_count

from benchmarks import training_step


class Fake:
    """In place of a process: takes so long, holds so much."""

    def __init__(self, seconds: float, memory: int, operations: int) -> None:
        self.seconds, self.held, self.count, self.turns = seconds, memory, operations, 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def turn(self) -> float:
        self.turns += 1
        return self.seconds

    def memory(self) -> int:
        return self.held

    def cost(self) -> Cost:
        return Cost(self.held, self.count)


@pytest.fixture
def faked(monkeypatch, tiny_clip):
    """Ours takes 2 s and 30 operations; the other 1 s and 10 more bytes a class. float32 has half the peak."""
    made = []

    def other(setting: Setting, baseline: str) -> Fake:
        made.append(Fake(10.0 + setting.classes, 1000 + 10 * setting.classes, 3 * setting.classes))
        return made[-1]

    rates = {"torch.float32": 5.0, "torch.bfloat16": 10.0}
    monkeypatch.setattr(training_step, "ours", lambda setting: Fake(2.0, 330, 30))
    monkeypatch.setattr(training_step, "theirs", other)
    monkeypatch.setattr(training_step, "load_model", lambda source: tiny_clip())
    monkeypatch.setattr(
        training_step,
        "product_runs",
        lambda shapes, dtype, device: {(dtype, shape): lambda: rates[str(dtype)] for shape in shapes},
    )
    return made


def test_figures_follow_from_both_sides(faked):
    found = compare(Setting("tecoa", "ViT-B-32", 100, 32, "cpu"), rounds=5, baseline_rounds=3)
    assert (found.ours, found.theirs, found.ratio) == (2.0, 110.0, 55.0)
    assert found.memory_share == 330 / 2000
    assert (found.ours_share, found.theirs_share) == (30 / 2 / 10, 300 / 110 / 5)
    assert found.ideal == (300 / 5) / (30 / 10)
    assert found.record()["of_ideal"] == 55 / 20
    assert found.record()["ours_images_per_second"] == 16
    assert faked[0].turns == 3


def test_a_tuned_baseline_is_compared_with_the_peak_of_bfloat16(faked):
    found = compare(Setting("tecoa", "ViT-B-32", 100, 32, "cpu"), "tuned", rounds=2)
    assert found.theirs_peak == found.ours_peak == 10
    assert found.ideal == 10
    assert faked[0].turns == 3  # one of them does not count


def test_the_largest_class_count_leaves_memory_to_spare(faked, monkeypatch):
    monkeypatch.setattr(training_step, "free_memory", lambda device: 6010)
    # 0.9 of 6010 bytes, less the 1000 that do not hang on the classes, are 440 classes of 10 bytes.
    assert largest_class_count("pmg_aft") == 440


def test_apart_one_side_is_gone_before_the_other_comes(faked, monkeypatch):
    order = []
    monkeypatch.setattr(Fake, "__enter__", lambda side: order.append(("in", side.seconds)) or side)
    monkeypatch.setattr(Fake, "__exit__", lambda side, *_: order.append(("out", side.seconds)))
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    together = compare(Setting("tecoa", "ViT-B-32", 100, 32, "cpu"), rounds=3)
    assert order == [("in", 2.0), ("in", 110.0), ("out", 110.0), ("out", 2.0)]
    order.clear()
    assert compare(Setting("tecoa", "ViT-B-32", 100, 32, "cpu"), rounds=3, apart=True) == together
    assert order == [("in", 2.0), ("out", 2.0), ("in", 110.0), ("out", 110.0)]


def test_the_extrapolation_is_a_line(faked):
    found = [compare(Setting("tecoa", "ViT-B-32", count, 32, "cpu"), rounds=1) for count in (50, 100, 200)]
    line = extrapolated(found)
    assert line["classes"] == 1000
    assert line["theirs"] == pytest.approx(1010)
    assert line["ratio"] == pytest.approx(505)


def test_it_prints_one_json_line(faked, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["training_step", "--classes", "50", "100", "200", "--rounds", "1"])
    training_step.main()
    line = json.loads(capsys.readouterr().out)
    assert line["benchmark"] == "training_step"
    assert [step["classes"] for step in line["steps"]] == [50, 100, 200]
    assert line["extrapolated"]["classes"] == 1000
    assert Comparison.__dataclass_fields__.keys() <= line["steps"][0].keys()


def test_largest_is_a_class_count(faked, monkeypatch, capsys):
    monkeypatch.setattr(training_step, "free_memory", lambda device: 6010)
    monkeypatch.setattr(sys, "argv", ["training_step", "--method", "pmg_aft", "--classes", "largest", "--rounds", "1"])
    training_step.main()
    assert [step["classes"] for step in json.loads(capsys.readouterr().out)["steps"]] == [440]


@pytest.mark.parametrize("tuned", [False, True])
def test_both_sides_are_what_they_are_called(tiny_clip, monkeypatch, tuned):
    monkeypatch.setattr(training_step, "load_model", lambda source, device, fast=True: tiny_clip(fast=fast))
    setting = Setting("tecoa", "any", 3, 4, "cpu")
    own, other = training_step.OurSide(setting), training_step.TheirSide(setting, tuned)
    assert own.run.trainer.model.fast_path == "on"
    assert own.run()["loss"] > 0
    assert other.run().item() > 0
    assert 0 < own.operations() < other.operations()
    assert other.run.tuned is tuned


def test_free_memory_of_an_accelerator_is_its_own(monkeypatch):
    monkeypatch.setattr(training_step.torch.cuda, "mem_get_info", lambda device: (123, 456))
    assert training_step.free_memory("cuda:1") == 123
    monkeypatch.setattr(training_step, "describe_machine", lambda folder: SimpleNamespace(memory=9, memory_free=None))
    assert training_step.free_memory("cpu") == 9


def test_a_side_without_memory_is_said_in_one_line(faked, monkeypatch):
    def killed(setting, baseline):
        raise SideError("the process of the published step ended with -9")

    monkeypatch.setattr(training_step, "theirs", killed)
    monkeypatch.setattr(sys, "argv", ["training_step", "--rounds", "1"])
    with pytest.raises(SystemExit, match="ended with -9"):
        training_step.main()
