"""The sweep: short runs on held-out training data, the best of which sets the learning rate."""

from __future__ import annotations

import json

import pytest

from ironclip.errors import ConfigError, ResumeError, RunFailedError
from ironclip.training.engine import train
from ironclip.training.sweep import choose, trials

SWEEP = {"sweep": {"lr": [0.001, 0.004, 0.002], "steps": 8}}


def leave(folder, recipe, robust, cosine=0.5):
    """Leave in a folder what a trial leaves there."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {"clean_accuracy": 0.9, "robust_accuracy": robust, "embedding_cosine": cosine}
    lines = [{"step": 1, "loss": 1.0}, {"step": 8, "validation": found | {"robust_accuracy": 0.0}}]
    lines += [{"step": recipe.optimisation.steps, "validation": found}]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "result.json").write_text("{}")


def runner(robust, cosine=None):
    """Run nothing, leave these values by learning rate; and remember who was run."""
    ran = []

    def run(recipe, folder):
        ran.append(folder.name)
        lr = recipe.optimisation.lr
        leave(folder, recipe, robust[lr], (cosine or {}).get(lr, 0.5))

    return run, ran


def test_trials_are_the_recipe_with_other_rates_and_fewer_steps(recipe):
    given = recipe(
        SWEEP
        | {
            "optimisation.epochs": 3,
            "optimisation.steps": None,
            "optimisation.warmup_steps": 50,
            "select": "best",
            "optimisation.weight_decay": 0.1,
        }
    )
    found = trials(given)
    assert list(found) == ["lr=0.001", "lr=0.004", "lr=0.002"]
    for trial, lr in zip(found.values(), SWEEP["sweep"]["lr"], strict=True):
        settings = trial.optimisation
        assert (settings.lr, settings.steps, settings.epochs, settings.warmup_steps) == (lr, 8, None, 2)
        assert (settings.weight_decay, settings.batch_size) == (0.1, given.optimisation.batch_size)
        assert (trial.sweep, trial.select, trial.validation.every) == (None, "last", 8)
        assert (trial.method, trial.attack, trial.threat, trial.data) == (
            given.method,
            given.attack,
            given.threat,
            given.data,
        )


def test_a_short_warmup_stays(recipe):
    (first, *_) = trials(recipe(SWEEP | {"optimisation.warmup_steps": 1})).values()
    assert first.optimisation.warmup_steps == 1


def test_no_sweep(recipe):
    with pytest.raises(ConfigError, match="the recipe has no sweep"):
        trials(recipe())


def test_no_held_out_samples(recipe):
    with pytest.raises(ConfigError, match="no held-out data to judge by"):
        trials(recipe(SWEEP | {"data.hold_out": 0}))


def test_the_most_robust_rate_is_chosen_by_its_last_validation(recipe, tmp_path):
    run, ran = runner({0.001: 0.2, 0.004: 0.5, 0.002: 0.3})
    chosen = choose(recipe(SWEEP), tmp_path, run)
    assert ran == ["lr=0.001", "lr=0.004", "lr=0.002"]
    assert (chosen.optimisation.lr, chosen.sweep) == (0.004, None)
    assert chosen.optimisation.steps == 4  # the recipe's own length
    verdict = json.loads((tmp_path / "sweep" / "result.json").read_text())
    assert (verdict["metric"], verdict["chosen"]) == ("robust_accuracy", 0.004)
    assert {name: trial["robust_accuracy"] for name, trial in verdict["trials"].items()} == {
        "lr=0.001": 0.2,
        "lr=0.004": 0.5,
        "lr=0.002": 0.3,
    }


def test_of_equals_the_smaller_rate(recipe, tmp_path):
    run, _ = runner({0.001: 0.2, 0.004: 0.5, 0.002: 0.5})
    assert choose(recipe(SWEEP), tmp_path, run).optimisation.lr == 0.002


def test_without_labels_the_cosine_decides(recipe, tmp_path):
    run, _ = runner(dict.fromkeys(SWEEP["sweep"]["lr"]), {0.001: 0.9, 0.004: 0.2, 0.002: 0.4})
    assert choose(recipe(SWEEP), tmp_path, run).optimisation.lr == 0.001
    assert json.loads((tmp_path / "sweep" / "result.json").read_text())["metric"] == "embedding_cosine"


def test_a_sweep_ends_in_a_run_of_the_chosen_rate(recipe, data_root, tmp_path):
    given = recipe(SWEEP | {"sweep": {"lr": [1e-9, 0.005], "steps": 2}, "optimisation.steps": 3})
    out = train(given, tmp_path / "run", data_root=str(data_root))
    verdict = json.loads((out / "sweep" / "result.json").read_text())
    used = json.loads((out / "run.json").read_text())["recipe"]
    assert used["optimisation"]["lr"] == verdict["chosen"]
    assert used["sweep"] is None
    assert json.loads((out / "result.json").read_text())["steps"] == 3
    for name, trial in verdict["trials"].items():
        assert trial["samples"] == 6
        assert json.loads((out / "sweep" / name / "result.json").read_text())["steps"] == 2
    # A second call resumes: nothing is trained again.
    before = (out / "sweep" / "lr=0.005" / "log.jsonl").stat().st_mtime_ns
    train(given, out, data_root=str(data_root))
    assert (out / "sweep" / "lr=0.005" / "log.jsonl").stat().st_mtime_ns == before


def test_trials_of_another_recipe_are_not_reused(recipe, data_root, tmp_path):
    sweep = {"sweep": {"lr": [1e-3, 5e-3], "steps": 1}, "optimisation.steps": 1}
    out = train(recipe(sweep), tmp_path / "run", data_root=str(data_root))
    (out / "checkpoint.safetensors").unlink()
    (out / "run.json").unlink()
    with pytest.raises(ResumeError, match="another recipe"):
        train(recipe(sweep | {"method": {"name": "fare"}}), out, data_root=str(data_root))


def test_a_rate_that_diverges_loses(recipe, tmp_path):
    run, _ = runner({0.001: 0.2, 0.002: 0.3})

    def failing(trial, folder):
        if trial.optimisation.lr == 0.004:
            raise RunFailedError("the loss was not finite in 3 steps in a row (step 5).", "Lower optimisation.lr.")
        run(trial, folder)

    assert choose(recipe(SWEEP), tmp_path, failing).optimisation.lr == 0.002
