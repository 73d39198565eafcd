"""Trackers are told what the log holds, each line once, whatever became of the run in between."""

from __future__ import annotations

import json
import sys
import types

import pytest

from ironclip.errors import ConfigError, MissingDependencyError
from ironclip.training import tracking
from ironclip.training.run_record import RunLog
from ironclip.training.tracking import LogFollower, Tracker, open_tracker, tracked


class Notes:
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.run, self.told, self.finished = None, [], 0

    def start(self, run) -> None:
        self.run = run

    def log(self, step, figures) -> None:
        self.told.append((step, dict(figures)))

    def finish(self) -> None:
        self.finished += 1


def line(step: int, **figures: object) -> str:
    return json.dumps({"step": step, **figures}) + "\n"


def test_every_line_is_told_once_as_it_is_written(tmp_path):
    notes: Tracker = Notes()
    follower = LogFollower(tmp_path, {"seed": 0}, [notes])
    follower.poll()
    log = RunLog(tmp_path, 0)
    log.write({"step": 1, "epoch": 0, "loss": 2.0})
    follower.poll()
    follower.poll()
    log.write({"step": 2, "epoch": 0, "loss": float("nan"), "lr": 0.1})
    log.write({"step": 2, "validation": {"samples": 4, "robust_accuracy": 0.25, "clean_accuracy": float("nan")}})
    follower.poll()
    assert notes.told == [
        (1, {"train/epoch": 0, "train/loss": 2.0}),
        (2, {"train/epoch": 0, "train/lr": 0.1}),
        (2, {"held_out/samples": 4, "held_out/robust_accuracy": 0.25}),
    ]
    assert notes.run.settings == {"seed": 0}
    assert notes.run.first_step == 1


def test_half_a_line_waits_for_its_other_half(tmp_path):
    notes = Notes()
    follower = LogFollower(tmp_path, {}, [notes])
    whole = line(1, loss=1.0)
    (tmp_path / "log.jsonl").write_text(whole[:9])
    follower.poll()
    assert notes.told == []
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write(whole[9:])
    follower.poll()
    assert notes.told == [(1, {"train/loss": 1.0})]


def test_a_run_that_goes_on_is_told_from_where_it_stopped(tmp_path):
    """The log had reached step 3 and its checkpoint step 2: step 3 comes again, and is not told twice."""
    (tmp_path / "log.jsonl").write_text(line(1, loss=3.0) + line(2, loss=2.0) + line(3, loss=1.0))
    notes = Notes()
    with tracked([], tmp_path, {}) as silent:
        silent.poll()
    follower = LogFollower(tmp_path, {}, [notes])
    log = RunLog(tmp_path, 2)  # takes step 3 back, in a new file
    for step in (3, 4):
        log.write({"step": step, "loss": 1.0 / step})
        follower.poll()
    assert notes.told == [(4, {"train/loss": 0.25})]
    assert notes.run.first_step == 4


def test_trackers_are_not_begun_when_a_run_is_refused_and_are_told_the_rest_at_the_end(tmp_path, monkeypatch):
    notes = Notes()
    monkeypatch.setitem(tracking.TRACKERS, "notes", lambda: notes)
    with pytest.raises(RuntimeError, match="broke"), tracked(["notes", "notes"], tmp_path, {}):
        raise RuntimeError("broke")
    assert (notes.run, notes.finished) == (None, 0)
    follower = LogFollower(tmp_path, {}, [notes])
    RunLog(tmp_path, 0).write({"step": 1, "loss": 1.0})
    follower.finish()
    assert (notes.told, notes.finished) == ([(1, {"train/loss": 1.0})], 1)


def test_a_training_run_tells_its_trackers_what_its_log_holds(run, tmp_path, monkeypatch):
    notes = Notes()
    monkeypatch.setitem(tracking.TRACKERS, "notes", lambda: notes)
    with tracked(["notes"], tmp_path / "run", {}) as follower:
        run(progress=lambda _: follower.poll())
    steps = [step for step, figures in notes.told if "train/loss" in figures]
    validations = [step for step, figures in notes.told if "held_out/robust_accuracy" in figures]
    assert (steps, validations) == ([1, 2, 3, 4], [2, 4])
    logged = [json.loads(one) for one in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [figures["train/loss"] for _, figures in notes.told if "train/loss" in figures] == [
        one["loss"] for one in logged if "loss" in one
    ]


# The trackers that there are


def test_an_unknown_tracker_names_the_near_one():
    with pytest.raises(ConfigError, match=r'unknown tracker "tensorbord"\. Did you mean "tensorboard"'):
        open_tracker("tensorbord")


@pytest.mark.parametrize(("name", "extra"), [("tensorboard", "watch"), ("trackio", "trackio"), ("wandb", "wandb")])
def test_a_package_that_is_absent_is_named_with_its_extra(monkeypatch, name, extra):
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(
        MissingDependencyError, match=rf"--track {name} needs the package {name}.*\n.*ironclip\[{extra}\]"
    ):
        open_tracker(name)


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_hosted_trackers_are_called_as_their_packages_want(tmp_path, monkeypatch, name):
    asked = []
    fake = types.SimpleNamespace(
        init=lambda *, project, name, config: asked.append((project, name, config)),
        log=lambda figures, step: asked.append((step, figures)),
        finish=lambda: asked.append("finish"),
    )
    monkeypatch.setitem(sys.modules, name, fake)
    with tracked([name], tmp_path / "tecoa", {"seed": 3}):
        (tmp_path / "tecoa").mkdir()
        RunLog(tmp_path / "tecoa", 0).write({"step": 1, "loss": 1.0})
    assert asked == [("ironclip", "tecoa", {"seed": 3}), (1, {"train/loss": 1.0}), "finish"]


def test_tensorboard_reads_back_what_was_told(tmp_path):
    pytest.importorskip("tensorboard", reason='not installed: pip install "ironclip[watch]"')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps in ((1, 2, 3), (2, 3, 4)):  # the second sitting goes on from step 1
        log = RunLog(tmp_path, steps[0] - 1)
        with tracked(["tensorboard"], tmp_path, {"seed": 0}):
            for step in steps:
                log.write({"step": step, "loss": 1.0 / step})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(one.step, one.value) for one in events.Scalars("train/loss")] == [
        (step, pytest.approx(1 / step)) for step in (1, 2, 3, 4)
    ]
