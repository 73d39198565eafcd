"""The main job through the command line, on sixty made-up images: train, eval, merge, report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ironclip.attacks.base import ATTACKS
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError
from ironclip.evaluation.evaluate import EvaluationRequest, evaluate_suite

NAMES = ["blue", "green", "red"]


@pytest.fixture
def evaluated(ironclip, suite_file, data_root, model_folder):
    def evaluate(*words):
        fixed = ("--suite", suite_file(NAMES), "--data-root", data_root, "--attack", "pgd:steps=2", "--eps", "2/255")
        return ironclip("eval", f"local-dir:{model_folder}", *fixed, *words)

    return evaluate


def test_train_then_eval_then_report(ironclip, recipe_file, suite_file, data_root, tmp_path):
    result = ironclip("train", recipe_file(), "--data-root", data_root)
    assert result.code == 0, result.err
    assert "Adversary in training: Linf 2/255, native, white-box, pgd_m" in result.err
    assert "recipe: 2/2, loss" in result.err
    assert "held-out robust" in result.err
    assert "ironclip eval runs/train/recipe" in result.out

    words = ("--suite", suite_file(NAMES), "--data-root", data_root, "--attack", "pgd:steps=2", "--eps", "2/255")
    result = ironclip("eval", "runs/train/recipe", "--name", "tuned", *words)
    assert result.code == 0, result.err
    header, _, first, second, *_ = result.out.splitlines()
    assert header.split("  ")[0] == "data set"
    assert first.startswith("Colours")
    assert "PGD-2" in first
    assert "all 60 images" in first
    assert second.strip().startswith("mean over classes")

    result = ironclip("report", "runs/eval/colours/tuned", "--title", "Two steps", "--json")
    assert result.code == 0, result.err
    page = tmp_path / json.loads(result.out)["html"]
    assert "Two steps" in page.read_text()
    assert "tuned" in page.with_suffix(".md").read_text()


def test_train_takes_seed_and_changes(ironclip, recipe_file, data_root, tmp_path):
    words = (
        "--data-root",
        data_root,
        "--seed",
        5,
        "--set",
        "optimisation.steps=1",
        "--limit",
        40,
        "--out",
        "run",
        "--json",
    )
    result = ironclip("train", recipe_file(), *words)
    assert result.code == 0, result.err
    assert json.loads(result.out)["model"] == "run/model"
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["recipe"]["seed"] == 5
    assert record["recipe"]["optimisation"]["steps"] == 1
    assert record["data"]["samples"] == 40 - 12


def test_json_alone_on_standard_output(evaluated):
    result = evaluated("--json", "--limit", "20")
    assert result.code == 0, result.err
    (row,) = json.loads(result.out)["rows"]
    assert row["dataset"] == "colours"
    assert row["threat"] == "Linf 2/255, native 16x16, white-box"
    assert row["totals"]["n"] == 20
    assert 0 <= row["robust_accuracy"]["low"] <= row["robust_accuracy"]["estimate"] <= row["clean_accuracy"]["estimate"]


def test_two_shards_merged_are_the_whole(evaluated, ironclip):
    whole = json.loads(evaluated("--json", "--out", "whole").out)["rows"]
    for part in range(2):
        assert evaluated("--shard", f"{part}/2", "--out", f"part{part}").code == 0
    result = ironclip("merge", "part0", "part1", "--out", "merged")
    assert result.code == 0, result.err
    assert "60 of 60 samples" in result.out
    (rows,) = Path("merged", "rows").iterdir()
    merged = json.loads(rows.read_text())
    assert merged["totals"]["n"] == 60
    for figure in ("clean_accuracy", "robust_accuracy", "robust_mean_per_class"):
        assert merged[figure] == whole[0][figure]


def test_switches_of_the_search_change_no_verdict(evaluated):
    plain = json.loads(evaluated("--json", "--out", "plain").out)["rows"][0]
    other = json.loads(
        evaluated("--json", "--out", "other", "--no-compact", "--no-fast", "--batch-size", "7", "--save", "none").out
    )["rows"][0]
    assert other["clean_accuracy"] == plain["clean_accuracy"]


def test_two_settings_of_one_attack_are_two_units_and_an_image_must_stand_both(evaluated, ironclip):
    words = ("--attack", "pgd:steps=1,step_size=1/255", "--attack", "pgd:steps=1,step_size=2/255", "--limit", 20)
    rows = json.loads(evaluated(*words, "--json", "--out", "both").out)["rows"]
    assert [row["attack"] for row in rows][-2:] == ["PGD-1", "PGD-1"]
    assert len({row["unit"] for row in rows}) == len(rows)
    assert ironclip("report", "both", "--out", "page").code == 0


def test_what_is_done_is_neither_probed_nor_attacked_again(evaluated, monkeypatch):
    first = json.loads(evaluated("--json", "--out", "run", "--limit", "20").out)["rows"]
    record = Path("run", "run.json").read_bytes()

    def never(*_):
        raise AssertionError("there is nothing left to do")

    monkeypatch.setattr("ironclip.evaluation.evaluate.fitted", never)
    monkeypatch.setattr("ironclip.evaluation.evaluate.run_sequence", never)
    again = evaluated("--json", "--out", "run", "--limit", "20")
    assert again.code == 0, again.err
    assert json.loads(again.out)["rows"] == first
    assert Path("run", "run.json").read_bytes() == record


def test_progress_is_told_after_each_step_of_the_attack(suite_file, data_root, model_folder, tmp_path):
    request = EvaluationRequest(
        model=f"local-dir:{model_folder}",
        suite=str(suite_file(NAMES)),
        data_root=str(data_root),
        attacks=(ATTACKS.create("pgd", {"steps": 3}),),
        threats=(ThreatModel(eps="1/255"),),
        out=tmp_path / "run",
        compact=False,
    )
    seen = []
    evaluate_suite(request, progress=seen.append)
    within = [one for one in seen if one.standing is not None]
    assert len(within) >= 3
    assert {one.done for one in within} == {0}
    assert seen[-1].standing is None
    assert seen[-1].done == seen[-1].total == 60


@pytest.mark.parametrize(
    ("rule", "value"),
    [("goal", "targeted"), ("knowledge", "score"), ("label_source", "model prediction")],
)
def test_a_game_that_is_not_played_is_refused(rule, value, suite_file, data_root, model_folder, tmp_path):
    request = EvaluationRequest(
        model=f"local-dir:{model_folder}",
        suite=str(suite_file(NAMES)),
        data_root=str(data_root),
        attacks=(ATTACKS.create("fgsm"),),
        threats=(ThreatModel(eps="1/255", **{rule: value}),),
        out=tmp_path / "run",
    )
    with pytest.raises(ConfigError, match=rf'threat\.{rule} is "{value}", which evaluate does not play'):
        evaluate_suite(request)
    assert not (tmp_path / "run").exists()


def test_the_linf_budgets_of_the_field_by_default(ironclip, suite_file, data_root, model_folder):
    words = ("--suite", suite_file(NAMES), "--data-root", data_root, "--limit", 16, "--attack", "fgsm", "--json")
    rows = json.loads(ironclip("eval", f"local-dir:{model_folder}", *words).out)["rows"]
    assert [row["threat"].split(",")[0] for row in rows] == ["Linf 1/255", "Linf 2/255", "Linf 4/255"]


def test_data_root_from_the_environment(ironclip, monkeypatch, recipe_file, data_root):
    monkeypatch.setenv("IRONCLIP_DATA_ROOT", str(data_root))
    assert ironclip("train", recipe_file(), "--set", "optimisation.steps=1").code == 0


def test_validate_prints_what_would_run(ironclip, recipe_file):
    result = ironclip("validate", recipe_file())
    assert result.code == 0
    assert "TeCoA()" in result.out
    assert "Linf 2/255, native, white-box" in result.out
    resolved = json.loads(ironclip("validate", recipe_file(), "--set", "seed=9", "--json").out)
    assert resolved["seed"] == 9
    assert resolved["optimisation"]["optimiser"] == "adamw"


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("methods", {"clean", "fare", "tecoa"}),
        ("attacks", {"fgsm", "pgd", "pgd_m"}),
        ("suites", {"natural"}),
    ],
)
def test_list(ironclip, kind, names):
    entries = json.loads(ironclip("list", kind, "--json").out)
    assert names <= set(entries)
    assert all(len(line) > 10 for line in entries.values())
    lines = ironclip("list", kind).out.splitlines()
    assert len(lines) == len(entries)


def test_list_models_names_every_kind_of_source(ironclip):
    from ironclip.models.sources import _OPENERS

    text = ironclip("list", "models").out
    for kind in {*_OPENERS, "python"} - {"tiny"}:
        assert f"{kind}:" in text


def test_doctor(ironclip, data_root):
    result = ironclip("doctor", "--data-root", data_root)
    assert result.code == 0
    assert "torch" in result.out
    assert f"{data_root}: colours" in result.out
    found = json.loads(ironclip("doctor", "--json", "--measure", "--data-root", "nowhere").out)
    assert found["data"] is None
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["memory"] > 2**28
    assert all(rate > 1e8 for rate in found["operations_per_second"].values())


def test_doctor_names_the_install_line_of_what_is_missing(ironclip, monkeypatch):
    monkeypatch.setattr("ironclip.machine.EXTRAS", {"hf": ("no_such_package",)})
    assert 'no_such_package missing: pip install "ironclip[hf]"' in ironclip("doctor").out
