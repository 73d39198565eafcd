"""Timing in turns, counting, and what `ironclip bench` says."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from ironclip import machine
from ironclip.benchmarking import bench, measuring, step, towers
from ironclip.benchmarking.bench import NAMES, Bench
from ironclip.benchmarking.measuring import best_product, counted, in_turns
from ironclip.benchmarking.step import MadeUpImages, OurStep, made_up_trainer, measure_step, published_recipe
from ironclip.errors import ConfigError, RegistryError
from ironclip.methods.base import METHODS
from ironclip.models.tuning import Tunable


def test_rounds_take_turns_and_the_first_does_not_count():
    seen = []

    def run(name, *values):
        left = iter(values)

        def measure() -> float:
            seen.append(name)
            return next(left)

        return measure

    medians = in_turns({"a": run("a", 100.0, 1.0, 5.0, 3.0), "b": run("b", 7.0, 9.0)}, 3, {"b": 2})
    assert medians == {"a": 3.0, "b": 8.0}
    assert "".join(seen) == "aababa"


def test_the_peak_of_a_precision_is_the_best_of_its_own_products():
    rates = {
        (torch.float32, (1, 2, 3)): 5.0,
        (torch.float32, (4, 5, 6)): 7.0,
        (torch.bfloat16, (1, 2, 3)): 11.0,
    }
    assert best_product(rates, torch.float32) == measuring.Peak(7.0, (4, 5, 6))
    assert best_product(rates, torch.bfloat16).rate == 11


def test_a_product_of_known_size_is_counted():
    left, right = torch.ones(3, 5), torch.ones(5, 7)
    assert counted(lambda: left @ right) == 2 * 3 * 5 * 7


def test_the_rate_of_a_product_follows_from_its_time(monkeypatch):
    ticks = iter([10.0, 12.0])
    monkeypatch.setattr(machine, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    monkeypatch.setattr(machine, "OPERATIONS_A_ROUND", 5 * 2 * 2 * 3 * 4)
    assert machine.product_rate((2, 3, 4), torch.float32) == 5 * 2 * 2 * 3 * 4 / 2


def test_peak_memory_is_of_this_process():
    before = machine.peak_memory()
    held = torch.ones(50 * 2**20)  # 200 MiB
    assert machine.peak_memory() - before <= 210 * 2**20
    assert machine.peak_memory() >= held.nbytes
    del held
    assert machine.peak_memory() >= before  # a peak does not fall


def test_peak_memory_without_a_proc_file_system(monkeypatch):
    monkeypatch.setattr(machine, "_colon_file", lambda path: {})
    usage = SimpleNamespace(ru_maxrss=3000)
    monkeypatch.setattr(machine.resource, "getrusage", lambda who: usage)
    monkeypatch.setattr(machine.sys, "platform", "linux")
    assert machine.peak_memory() == 3000 * 1024
    monkeypatch.setattr(machine.sys, "platform", "darwin")
    assert machine.peak_memory() == 3000


def test_an_accelerator_says_what_its_tensors_held(monkeypatch):
    monkeypatch.setattr(machine.torch.cuda, "max_memory_allocated", lambda device: 77)
    waited = []
    monkeypatch.setattr(machine.torch.cuda, "synchronize", waited.append)
    assert machine.peak_memory("cuda:0") == 77
    measuring.timed(lambda: None, "cuda:0")
    assert waited == ["cuda:0", "cuda:0"]


def test_made_up_images_are_a_data_set():
    data = MadeUpImages(5, 8, 2)
    assert len(data) == 5
    assert data.labels == [0, 1, 0, 1, 0]
    assert data.class_names == ["thing 0", "thing 1"]
    assert len(set(data.keys)) == 5
    assert torch.equal(data[3].pixels, data[3].pixels)
    assert not torch.equal(data[3].pixels, data[2].pixels)
    assert data[3].pixels.shape == (3, 8, 8)


@pytest.mark.parametrize("method", ["tecoa", "fare", "pmg_aft", "agft"])
def test_a_step_is_that_of_the_recipe(tiny_clip, method):
    trainer = made_up_trainer(published_recipe(method, batch=4), tiny_clip(), classes=3)
    before = {name: value.detach().clone() for name, value in trainer.parameters.items()}
    logged = OurStep(trainer)()
    assert logged["loss"] > 0
    assert trainer.progress.images == 4
    assert any(not torch.equal(value, before[name]) for name, value in trainer.parameters.items())
    attack, threat = trainer.recipe.build_attack(), trainer.recipe.build_threat()
    assert (attack.steps, threat.eps) == ((10, "2/255") if method == "fare" else (2, "1/255"))


def test_every_method_that_tunes_a_tower_by_images_can_be_timed():
    for name in METHODS:
        recipe = published_recipe(name, batch=4)
        assert recipe.build_method().name == name
        assert recipe.build_method().trains in Tunable


def test_an_unknown_method_is_named():
    with pytest.raises(RegistryError, match="Did you mean"):
        published_recipe("tecao", batch=4)


@pytest.fixture
def quick(monkeypatch, tiny_clip):
    """Measure the tiny model of the tests, with products that take no time."""
    monkeypatch.setattr(towers, "SQUARE", (64, 64, 64))
    monkeypatch.setattr(machine, "OPERATIONS_A_ROUND", 1.0)
    for module in (bench, step):
        monkeypatch.setattr(
            module, "load_model", lambda source, device="cpu", fast=True: tiny_clip(fast=fast and source != "slow")
        )


@pytest.mark.usefixtures("quick")
def test_the_step_is_timed_with_and_without_the_fast_path():
    speed = measure_step("any", "tecoa", batch=4, classes=3, rounds=1)
    assert (speed.method, speed.batch, speed.classes) == ("tecoa", 4, 3)
    assert min(speed.stock, speed.ours) > 0


@pytest.mark.usefixtures("quick")
def test_every_measurement_has_lines_that_follow_from_their_times():
    measured = Bench("any", method="tecoa", batch=4, classes=3, rounds=1, device="cpu")
    lines = {name: measured.measure(name) for name in NAMES}
    assert [line.what for line in lines["peaks"]] == ["best product, float32", "best product, bfloat16"]
    for name, count in (("image", 4), ("text", 3), ("step", 4)):
        *others, own = lines[name]
        assert own.side == "IronCLIP"
        assert own.rate == count / own.seconds
        assert [other.ratio for other in others] == [pytest.approx(other.seconds / own.seconds) for other in others]
    assert lines["image"][-1].share > 0


@pytest.mark.usefixtures("quick")
def test_a_tower_without_fast_path_is_refused():
    with pytest.raises(ConfigError, match="switched off"):
        Bench("slow", method="tecoa", batch=4, classes=3, rounds=1, device="cpu").measure("peaks")


@pytest.mark.usefixtures("quick")
def test_an_unknown_measurement_is_named():
    with pytest.raises(RegistryError, match='"imge"'):
        Bench("any", method="tecoa", batch=4, classes=3, rounds=1, device="cpu").measure("imge")


@pytest.mark.usefixtures("quick")
def test_the_command_prints_a_table_or_json(capsys):
    from ironclip.cli.bench import bench_command

    bench_command("text", batch=4, classes=3, rounds=1)
    table = capsys.readouterr().out
    assert "class prompts, forward" in table
    assert "IronCLIP" in table
    bench_command("image", batch=4, classes=3, rounds=1, json=True)
    found = json.loads(capsys.readouterr().out)
    assert [line["side"] for line in found["image"]] == ["stock float32", "stock bfloat16 autocast", "IronCLIP"]
    assert found["machine"]["torch"] == torch.__version__
