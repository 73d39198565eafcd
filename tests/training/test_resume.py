"""A run that is stopped, by whatever, ends as the one that never was: weights, optimiser and log, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ironclip.errors import ResumeError, RunFailedError
from ironclip.models.sources import load_model, save_model
from ironclip.training import checkpoint, engine
from ironclip.training.checkpoint import FILE, Progress, load_checkpoint, save_checkpoint
from ironclip.training.engine import Trainer, train
from ironclip.training.recipe import load_recipe
from ironclip.training.run_record import RunLog
from ironclip.training.validation import Validation

# Eleven steps over three epochs of four, checkpoints that fall on no epoch's end, validations on others.
LONG = {
    "optimisation.steps": 11,
    "checkpoint.every": 3,
    "validation.every": 4,
    "method": {"name": "fare", "clean_weight": 0.3},
    "optimisation.precision": "bf16",
    "select": "best",
}


class StopError(Exception):
    """What a test stops a run with."""


@pytest.fixture
def run(recipe, data_root, tmp_path):
    def make(out="run", changes=None, **options):
        return train(recipe(LONG | (changes or {})), tmp_path / out, data_root=str(data_root), **options)

    return make


@pytest.fixture
def stop_before(monkeypatch):
    """Raise before the step of this number, once; or call something there."""

    def arrange(number, action=None):
        step, todo = Trainer.step, [number]

        def stopping(self, samples, epoch):
            if todo and self.progress.step == todo[0]:
                todo.clear()
                if action is None:
                    raise StopError
                action()
            return step(self, samples, epoch)

        monkeypatch.setattr(Trainer, "step", stopping)

    return arrange


def checkpoint_of(out):
    """Return the metadata and the tensors of a checkpoint."""
    with safe_open(out / FILE, framework="pt") as file:
        return file.metadata(), load_file(out / FILE)


def assert_same_run(found, expected, log_of):
    metadata, tensors = checkpoint_of(found)
    wanted_metadata, wanted = checkpoint_of(expected)
    assert metadata == wanted_metadata
    assert set(tensors) == set(wanted)
    for name, value in wanted.items():
        assert torch.equal(tensors[name], value), name
    for name in ("model/open_clip_model.safetensors", "model/open_clip_config.json", "result.json"):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    assert log_of(found) == log_of(expected)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimisation.optimiser": "sgd", "method": {"name": "tecoa"}, "select": "last"},
        {"optimisation.optimiser": "sgd", "optimisation.momentum": 0.0, "optimisation.precision": "float32"},
        {"optimisation.optimiser": "adam", "optimisation.accumulate": 2, "optimisation.warmup_steps": 5},
    ],
    ids=["adamw", "sgd", "sgd without momentum", "adam in parts"],
)
def test_a_run_that_broke_off_ends_as_if_it_had_not(changes, run, stop_before, log_of):
    straight = run("straight", changes)
    stop_before(8)  # the checkpoint is of step 6: two steps are done again
    with pytest.raises(StopError):
        run("stopped", changes)
    assert log_of(straight.parent / "stopped")[-1]["step"] == 8
    stopped = run("stopped", changes)
    assert_same_run(stopped, straight, log_of)
    has_state = any(name.startswith("optimiser.") for name in checkpoint_of(stopped)[1])
    assert has_state == (changes.get("optimisation.momentum") != 0.0)


def test_a_run_that_broke_off_before_its_first_checkpoint_begins_anew(run, stop_before, log_of):
    straight = run("straight")
    stop_before(2)
    with pytest.raises(StopError):
        run("stopped")
    assert not (straight.parent / "stopped" / FILE).exists()
    assert_same_run(run("stopped"), straight, log_of)


def test_a_run_that_is_done_is_not_done_again(run, log_of, monkeypatch):
    out = run()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("a step was done again"))
    run()
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_teacher_is_the_start_also_after_a_resume(run, stop_before, monkeypatch, model_folder):
    """D18: a teacher copied after the checkpoint is loaded would be the student."""
    seen, step = [], Trainer.step

    def look(self, samples, epoch):
        start = load_model(f"local-dir:{model_folder}").clip.state_dict()
        teacher = self.teacher.model.clip.state_dict()
        seen.append(all(torch.equal(teacher[name], start[name]) for name in start))
        return step(self, samples, epoch)

    stop_before(5)
    with pytest.raises(StopError):
        run()
    monkeypatch.setattr(Trainer, "step", look)
    run()
    assert len(seen) == 8
    assert all(seen)


def test_best_weights_survive(run, stop_before, monkeypatch):
    values, kept = {4: 0.6, 8: 0.2, 11: 0.3}, {}

    def validate(self, samples=None):
        step = self.progress.step
        kept[step] = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        return Validation(4, 0.9, values[step], 0.9, 0.0, 0.5)

    monkeypatch.setattr(Trainer, "validate", validate)
    stop_before(7)
    with pytest.raises(StopError):
        run()
    saved = load_file(run() / "model" / "open_clip_model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in kept[4].items())


# Signals


@pytest.fixture
def harmless_sigterm():
    """Keep a signal that nobody catches from ending the test session."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("harmless_sigterm")
def test_sigterm_writes_a_checkpoint_and_puts_handlers_back(run, stop_before, log_of, tmp_path):
    handler = signal.getsignal(signal.SIGTERM)
    straight = run("straight")
    stop_before(4, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        run("stopped")
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is handler
    assert json.loads(checkpoint_of(tmp_path / "stopped")[0]["progress"])["step"] == 5
    assert_same_run(run("stopped"), straight, log_of)


@pytest.mark.usefixtures("harmless_sigterm")
def test_sigterm_while_progress_is_shown_writes_a_checkpoint_too(run, tmp_path):
    def show(progress):
        if progress.step == 5:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit):
        run("stopped", progress=show)
    assert json.loads(checkpoint_of(tmp_path / "stopped")[0]["progress"])["step"] >= 5


def test_ctrl_c_writes_a_checkpoint(run, stop_before, tmp_path):
    stop_before(5, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run("stopped")
    assert json.loads(checkpoint_of(tmp_path / "stopped")[0]["progress"])["step"] >= 5


@pytest.mark.usefixtures("harmless_sigterm")
def test_a_signal_in_the_last_step_ends_the_process_when_the_run_is_done(run, stop_before, tmp_path):
    stop_before(10, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit):
        run("run")
    assert (tmp_path / "run" / "result.json").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from ironclip.training import engine
from ironclip.training.recipe import load_recipe

recipe, out, data_root, how, number = sys.argv[1:]
step, replace = engine.Trainer.step, Path.replace

def stopping(self, samples, epoch):
    if how == "SIGTERM" and self.progress.step == int(number):
        os.kill(os.getpid(), signal.SIGTERM)
    return step(self, samples, epoch)

written = []

def killing(self, target):
    # The second checkpoint is on the disk under its temporary name: not yet in its place.
    if how == "SIGKILL" and target.name == "checkpoint.safetensors":
        written.append(1)
        if len(written) == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)

engine.Trainer.step, Path.replace = stopping, killing
engine.train(load_recipe(recipe), Path(out), data_root=data_root)
"""


@pytest.mark.parametrize(("how", "number", "code", "kept"), [("SIGTERM", 7, 143, 8), ("SIGKILL", 3, -9, 6)])
def test_a_killed_process_goes_on(how, number, code, kept, run, content, data_root, log_of, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content(LONG), sort_keys=False))
    root = Path(engine.__file__).parents[2]
    process = subprocess.run(
        [sys.executable, "-c", KILLED, path, tmp_path / "stopped", data_root, how, str(number)],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert process.returncode == code, process.stderr
    stopped = tmp_path / "stopped"
    assert json.loads(checkpoint_of(stopped)[0]["progress"])["step"] == kept
    train(load_recipe(path), stopped, data_root=str(data_root))
    assert_same_run(stopped, run("straight"), log_of)


# Refusals


@pytest.mark.parametrize("changes", [{"optimisation.lr": 0.001}, {"method": {"name": "tecoa"}}, {"seed": 1}])
def test_another_recipe_is_refused(changes, run):
    out = run()
    before = (out / FILE).read_bytes()
    with pytest.raises(ResumeError, match="holds a run of another recipe, of other data or of other weights") as caught:
        run("run", changes)
    assert "--out" in caught.value.remedy
    assert (out / FILE).read_bytes() == before


def test_other_data_are_refused(run):
    run()
    with pytest.raises(ResumeError, match="of other data"):
        run(limit=30)


def test_other_weights_are_refused(run, tiny_clip, recipe, data_root, tmp_path):
    folder = tmp_path / "model"
    save_model(tiny_clip(), folder)
    changes = {"model": f"local-dir:{folder}"}
    run("run", changes)
    save_model(tiny_clip(seed=1), folder)
    with pytest.raises(ResumeError, match="of other weights"):
        run("run", changes)


def test_the_place_of_the_data_does_not_matter(run, recipe, data_root, tmp_path, monkeypatch):
    out = run()
    (tmp_path / "moved").symlink_to(data_root)
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("a step was done again"))
    assert train(recipe(LONG), out, data_root=str(tmp_path / "moved"), command=["other"], strict=True) == out


def test_the_same_recipe_in_other_words_is_the_same_run(run):
    run("run", {"method": {"name": "fare", "clean_weight": 0.3}})
    run("run", {"method": {"clean_weight": 0.3, "name": "fare"}})


@pytest.mark.parametrize("length", [0, 5, 200, -1])
def test_a_truncated_checkpoint_is_refused(length, run):
    out = run()
    (out / FILE).write_bytes((out / FILE).read_bytes()[:length])
    with pytest.raises(ResumeError, match=r"checkpoint\.safetensors cannot be read") as caught:
        run()
    assert "Delete the run folder" in caught.value.remedy


def test_a_file_of_another_kind_is_refused(run, tmp_path):
    (tmp_path / "run").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "run" / FILE)
    with pytest.raises(ResumeError):
        run()


def test_run_json_is_of_this_run(run, stop_before, tmp_path):
    stop_before(1)
    with pytest.raises(StopError):
        run("run", {"seed": 5})
    out = run("run", {"seed": 6})
    assert json.loads((out / "run.json").read_text())["recipe"]["seed"] == 6


def test_weights_that_are_not_finite_replace_no_checkpoint(run, tmp_path, monkeypatch):
    step = Trainer.step

    def exploding(self, samples, epoch):
        logged = step(self, samples, epoch)
        if self.progress.step == 4:
            with torch.no_grad():
                self.parameters["visual.proj"].fill_(torch.inf)  # as an optimiser leaves them that overflowed
        return logged

    monkeypatch.setattr(Trainer, "step", exploding)
    with pytest.raises(RunFailedError):
        run("run", {"select": "last"})
    _, tensors = checkpoint_of(tmp_path / "run")
    assert all(torch.isfinite(value).all() for value in tensors.values())


# The file


def toy():
    parameters = {"a": torch.nn.Parameter(torch.tensor([1.0, 2.0])), "b": torch.nn.Parameter(torch.zeros(3))}
    return parameters, torch.optim.AdamW(parameters.values(), lr=0.1)


def stepped():
    parameters, optimiser = toy()
    parameters["a"].grad = torch.tensor([0.5, -1.0])  # "b" has had no gradient yet, so no state
    optimiser.step()
    return parameters, optimiser


def test_progress_and_best_come_back(tmp_path):
    parameters, optimiser = stepped()
    progress = Progress(7, 2, 1, 56, 4, 0.25, {"toy/train/3": "broken"})
    save_checkpoint(tmp_path, "key", progress, dict(parameters), optimiser, {"a": torch.tensor([9.0, 9.0])})
    fresh, its_optimiser = toy()
    found, best = load_checkpoint(tmp_path, "key", dict(fresh), its_optimiser)
    assert found == progress
    assert torch.equal(best["a"], torch.tensor([9.0, 9.0]))
    assert torch.equal(fresh["a"], parameters["a"])
    for both in (parameters, fresh):
        both["a"].grad = torch.tensor([-0.2, 0.4])
    optimiser.step()
    its_optimiser.step()
    assert torch.equal(fresh["a"], parameters["a"])
    assert its_optimiser.state_dict()["state"].keys() == {0}


def test_nothing_to_resume(tmp_path):
    parameters, optimiser = toy()
    assert load_checkpoint(tmp_path, "key", dict(parameters), optimiser) is None


def test_a_resume_clears_what_a_kill_left_half_written(tmp_path):
    parameters, optimiser = stepped()
    save_checkpoint(tmp_path, "key", Progress(step=1), dict(parameters), optimiser, {})
    (tmp_path / f".{FILE}.12345.tmp").write_bytes(b"half")
    (tmp_path / ".other.tmp").write_bytes(b"not ours")
    load_checkpoint(tmp_path, "key", dict(parameters), optimiser)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.tmp", FILE]


def test_a_failure_while_writing_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    parameters, optimiser = stepped()
    save_checkpoint(tmp_path, "key", Progress(step=1), dict(parameters), optimiser, {})
    before = (tmp_path / FILE).read_bytes()

    def full(path, content):
        path.with_name(".half.tmp").write_bytes(content[:50])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, "key", Progress(step=2), dict(parameters), optimiser, {})
    assert (tmp_path / FILE).read_bytes() == before


def test_the_log_drops_what_will_come_again(tmp_path):
    log = RunLog(tmp_path, 0)
    for step in range(1, 6):
        log.write({"step": step})
    with log.path.open("a") as file:
        file.write('{"step": 6, "lo')
    assert [json.loads(line)["step"] for line in RunLog(tmp_path, 3).path.read_text().splitlines()] == [1, 2, 3]
    log.write({"step": 4})
    assert [json.loads(line)["step"] for line in RunLog(tmp_path, 9).path.read_text().splitlines()] == [1, 2, 3, 4]
