"""Verdicts on the rows of a run: light ones by themselves, full ones by `ironclip diagnose`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from ironclip.errors import ConfigError, DataError
from ironclip.evaluation.diagnosed_run import diagnose_run, threat_of
from ironclip.evaluation.searches import Effort
from ironclip.evaluation.store import RunStore

NAMES = ["blue", "green", "red"]
EFFORT = Effort(steps=4, queries=8, corners=3, grid_steps=2, huge_steps=3)
LIGHT = {
    "probability_output",
    "invalid_outputs",
    "dtype_gap",
    "attack_did_nothing",
    "min_progress",
    "clean_replay",
    "randomised",
    "test_time_compute",
    "batch_invariance",
    "no_gradient_path",
    "zero_gradient_fraction",
    "zero_gradient_fraction_ce",
    "fd_cosine",
    "fd_relative_error",
}


@pytest.fixture
def evaluated(ironclip, suite_file, data_root, model_folder, tmp_path) -> tuple[Path, str, str]:
    """A run of twenty images with its rows' light verdicts; its suite; its model."""
    model = tmp_path / "model"
    shutil.copytree(model_folder, model)
    suite = str(suite_file(NAMES))
    words = ("--suite", suite, "--data-root", data_root, "--attack", "pgd:steps=3,loss=margin", "--eps", "2/255")
    result = ironclip("eval", f"local-dir:{model}", *words, "--limit", "20", "--out", "run")
    assert result.code == 0, result.err
    return Path("run"), suite, f"local-dir:{model}"


def test_an_evaluation_gives_every_row_a_light_verdict(evaluated, ironclip):
    (file,) = (evaluated[0] / "rows").iterdir()
    row = json.loads(file.read_text())
    assert {check["name"] for check in row["checks"]} == LIGHT
    failed = {check["name"] for check in row["checks"] if check["state"] in ("failed", "not_run")}
    assert row["verdict"] == (sorted(failed) or ["trusted(light)"])
    store = RunStore.open(evaluated[0])
    (unit,) = store.units()
    assert store.diagnosis(unit).profile == "light"
    assert list(store.aggregate(unit).verdict) == row["verdict"]


def test_diagnose_repeats_what_the_evaluation_found(evaluated, ironclip, data_root):
    before = [path.read_bytes() for path in sorted((evaluated[0] / "samples").rglob("*.parquet"))]
    (file,) = (evaluated[0] / "diagnostics").iterdir()
    stored = json.loads(file.read_text())
    file.unlink()
    words = ("--suite", evaluated[1], "--data-root", data_root)
    result = ironclip("diagnose", "run", *words, "--light")
    assert result.code == 0, result.err
    assert "fd_cosine" in result.out
    assert json.loads(file.read_text()) == stored
    assert [path.read_bytes() for path in sorted((evaluated[0] / "samples").rglob("*.parquet"))] == before
    result = ironclip("diagnose", "run", *words, "--light", "--json")
    (found,) = json.loads(result.out)["rows"].values()
    assert found["verdict"] == stored["verdict"]


def test_only_rows_of_the_data_sets_that_are_named(evaluated, ironclip, data_root):
    (file,) = (evaluated[0] / "diagnostics").iterdir()
    (name,) = {
        record.dataset for record in map(RunStore.open(evaluated[0]).record, RunStore.open(evaluated[0]).units())
    }
    file.unlink()
    words = ("--suite", evaluated[1], "--data-root", data_root, "--light")
    wrong = ironclip("diagnose", "run", *words, "--dataset", f"{name}s")
    assert wrong.code == 2
    assert f'no rows of "{name}s"' in wrong.err
    assert f"It has: {name}." in wrong.err
    assert not file.exists()
    assert ironclip("diagnose", "run", *words, "--dataset", name).code == 0
    assert file.exists()


def test_the_full_profile_stores_its_searches(evaluated, data_root):
    path, suite, model = evaluated
    told = []
    store = diagnose_run(
        path,
        suite=suite,
        data_root=str(data_root),
        surrogates=[model],
        samples=6,
        effort=EFFORT,
        told=lambda unit, verdict: told.append((unit, verdict)),
    )
    (unit,) = store.units()
    found = store.diagnosis(unit)
    assert told == [(unit, found.verdict)]
    assert (found.profile, found.samples) == ("full", 6)
    state = {check.name: check.state for check in found.checks}
    assert set(state) > LIGHT | {"replay", "black_box_stronger", "transfer_stronger", "eps_monotone", "ce_direction"}
    assert "not_run" not in state.values()
    assert state["replay"] == "passed"
    assert store.aggregate(unit).verdict == found.verdict


def test_require_trusted_ends_with_one(evaluated, ironclip, data_root):
    store = RunStore.open(evaluated[0])
    (unit,) = store.units()
    words = ("diagnose", "run", "--suite", evaluated[1], "--data-root", data_root, "--light", "--limit", "4")
    trusted = ironclip(*words, "--require-trusted")
    verdict = RunStore.open(evaluated[0]).diagnosis(unit).verdict
    assert trusted.code == (0 if verdict == ("trusted(light)",) else 1)


def test_what_has_changed_since_is_refused(evaluated, data_root, model_folder, tmp_path):
    path, suite, _ = evaluated
    with pytest.raises(DataError, match="is no run folder"):
        diagnose_run(tmp_path / "none")
    content = yaml.safe_load(Path(suite).read_text())
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(content | {"version": 2}))
    with pytest.raises(ConfigError, match=r"not the one that .* evaluated with.*\n.*--suite"):
        diagnose_run(path, suite=str(other), data_root=str(data_root))
    shutil.copytree(data_root, tmp_path / "data")
    (image,) = sorted((tmp_path / "data").rglob("00.png"))[:1]
    image.write_bytes(image.read_bytes() + b" ")
    with pytest.raises(DataError, match="are not those that run evaluated"):
        diagnose_run(path, suite=suite, data_root=str(tmp_path / "data"))
    from safetensors.torch import load_file, save_file

    weights = tmp_path / "model" / "open_clip_model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor + 0.01 for name, tensor in tensors.items()}, weights)
    with pytest.raises(DataError, match=r"is not the model that run evaluated.*\n.*Restore it"):
        diagnose_run(path, suite=suite, data_root=str(data_root))


def test_a_damaged_verdict_is_named_and_an_outdated_one_is_none(evaluated):
    store = RunStore.open(evaluated[0])
    (unit,) = store.units()
    (file,) = (evaluated[0] / "diagnostics").iterdir()
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"checks_version": 0}))
    assert store.diagnosis(unit) is None
    assert store.aggregate(unit).verdict == ()
    file.write_text("{")
    with pytest.raises(DataError, match=r"cannot be read.*\n.*diagnose again"):
        store.diagnosis(unit)


def test_the_game_on_record_is_the_game_that_was_played(evaluated):
    store = RunStore.open(evaluated[0])
    (unit,) = store.units()
    threat = threat_of(store.record(unit).threat)
    assert threat.record().items() <= store.record(unit).threat.record.items()
