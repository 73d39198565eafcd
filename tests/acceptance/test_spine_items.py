"""The items of the spine can fail: each is shown something that is wrong."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from acceptance.claims import Context
from safetensors.torch import save_file
from torch import nn

from acceptance import clones, killing, spine, spine_clone, spine_errors, spine_exact, spine_losses, store
from ironclip.attacks.driver import run_attack
from ironclip.attacks.fgsm import FGSM
from ironclip.attacks.objectives import Misclassify
from ironclip.attacks.threat_model import ThreatModel


def figures(item, tmp_path):
    return {figure.claim: figure.value for figure in item.measure(Context(tmp_path, short=True))}


def test_items_and_claims_have_names_of_their_own():
    assert len({item.name for item in spine.ITEMS}) == len(spine.ITEMS)
    for item in spine.ITEMS:
        assert item.claims
        assert len({claim.name for claim in item.claims}) == len(item.claims)


@pytest.mark.parametrize("item", spine.ITEMS, ids=lambda item: item.name)
def test_modules_of_an_item_exist(item):
    assert [module for module in item.modules if find_spec(module) is None] == []


def test_closed_forms_notice_an_attack_that_falls_short(tmp_path, monkeypatch):
    for norm in ("linf", "l2"):
        monkeypatch.setitem(spine_losses.CLOSED_FORMS, norm, (FGSM(rel_step_size=0.9),))
    found = figures(spine_losses.closed_forms, tmp_path)
    assert found["linf"] > 0
    assert found["l2"] > 0


def test_closed_forms_leave_some_images_robust_and_some_not():
    for norm in ("linf", "l2"):
        robust = torch.cat([spine_losses.made_up(norm, number).robust for number in range(8)])
        assert 0.1 < robust.float().mean() < 0.9


@pytest.fixture
def outcome():
    problem = spine_losses.made_up("linf", 0)
    objective = Misclassify(problem.classifier, problem.labels)
    keys = [str(index) for index in range(len(problem.pixels))]
    return run_attack(FGSM(), objective, problem.pixels, keys, ThreatModel(eps="2/255"), seed=0)


def test_differing_counts_flags_and_last_bits(outcome):
    assert spine_exact.differing(outcome, outcome) == 0
    nudged = outcome.adversarial.clone()
    nudged[3, 0, 0, 0] = torch.nextafter(nudged[3, 0, 0, 0], torch.tensor(2.0))
    flipped = outcome.broken.clone()
    flipped[5] = ~flipped[5]
    assert spine_exact.differing(outcome, replace(outcome, adversarial=nudged)) == 1
    assert spine_exact.differing(outcome, replace(outcome, adversarial=nudged, broken=flipped)) == 2


@pytest.mark.parametrize(
    "touch",
    [
        lambda model: model.train(),
        lambda model: model[0].requires_grad_(False),
        lambda model: setattr(model[0].weight, "grad", torch.ones(2, 2)),
        lambda model: model[0].weight.data.add_(1e-3),
    ],
    ids=["mode", "requires_grad", "grad", "value"],
)
def test_hygiene_sees_what_an_attack_left_behind(touch):
    model = nn.Sequential(nn.Linear(2, 2)).eval()
    before = spine_exact._model_state(model)
    assert spine_exact._model_state(model) == before
    touch(model)
    assert spine_exact._model_state(model) != before


@pytest.mark.parametrize(
    ("answer", "faults"),
    [
        (spine_errors.Answer(2, "Error: eps is 4\nWrite 4/255."), 0),
        (spine_errors.Answer(0, "Error: eps is 4\nWrite 4/255."), 1),
        (spine_errors.Answer(2, "Error: something\nWrite 4/255."), 1),
        (spine_errors.Answer(2, "Error: eps is 4\nThink again."), 1),
        (spine_errors.Answer(1, "Traceback (most recent call last):\nValueError: eps is 4"), 3),
        (spine_errors.Answer(0, ""), 3),
    ],
)
def test_errors_counts_faults_of_an_answer(tmp_path, monkeypatch, answer, faults):
    mistake = spine_errors.Mistake("made up", lambda folder: answer, "eps is 4", "4/255")
    monkeypatch.setattr(spine_errors, "MISTAKES", {"one": mistake})
    monkeypatch.setattr(spine_errors, "_set_the_stage", lambda folder: None)
    assert figures(spine_errors.errors, tmp_path) == {"one": faults}


def test_a_line_of_the_log_counts_once_it_is_whole(tmp_path):
    log, other = tmp_path / "log.jsonl", tmp_path / "other.jsonl"
    log.write_text(
        '{"step": 1, "loss": 0.5, "images_per_second": 7.0}\n{"step": 1, "validation": {}}\n'
        '{"step": 2, "loss": 0.25}\n{"step": 3, "lo'
    )
    assert killing.steps_of(log) == {1: {"loss": 0.5}, 2: {"loss": 0.25}}
    other.write_text('{"step": 1, "loss": 0.5, "images_per_second": 8.0}\n{"step": 2, "loss": 0.2500001}\n')
    assert killing.differing_steps(log, log, 2) == 0
    assert killing.differing_steps(log, other, 2) == 1
    assert killing.differing_steps(log, log, 3) == 1  # a step is missing
    assert killing.differing_steps(log, log, 1) == 1  # one is too many


def test_tensors_differ_in_a_bit_or_a_name(tmp_path):
    tensors = {"a": torch.zeros(2), "b": torch.ones(2)}
    save_file(tensors, tmp_path / "one")
    save_file(tensors | {"b": torch.nextafter(torch.ones(2), torch.zeros(2))}, tmp_path / "two")
    save_file(tensors | {"c": torch.ones(1)}, tmp_path / "three")
    assert killing.differing_tensors(tmp_path / "one", tmp_path / "one") == (0, 2)
    assert killing.differing_tensors(tmp_path / "one", tmp_path / "two") == (1, 2)
    assert killing.differing_tensors(tmp_path / "one", tmp_path / "three") == (1, 2)


def test_a_run_that_ends_by_itself_was_not_killed(tmp_path):
    with pytest.raises(RuntimeError, match=r"ended with 2 before step 1.*there is no recipe"):
        killing.kill_at(1, tmp_path / "log.jsonl", ["train", tmp_path / "none.yaml"], tmp_path / "output.txt")


@pytest.mark.parametrize(("recipe", "exits"), [("@echo 7 passed", {0.0}), ("@echo 1 failed; exit 1", {2.0})])
def test_a_clone_runs_make_test_twice_with_an_environment_of_its_own(tmp_path, monkeypatch, recipe, exits):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.example", *words], cwd=origin, check=True)

    origin = tmp_path / "origin"
    (origin / ".ci").mkdir(parents=True)
    (origin / ".ci" / "run").write_text("#!/bin/sh\nmake test\n")
    (origin / "Makefile").write_text(f'test:\n\t@echo "$$HOME $$IRONCLIP_VENV" >> {tmp_path}/places\n\t{recipe}\n')
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    (origin / "Makefile").write_text("test:\n\t@false\n")  # not committed, so not cloned
    for module in (clones, store):
        monkeypatch.setattr(module, "ROOT", origin)
    found = {figure.claim: figure for figure in spine_clone.fresh_clone.measure(Context(tmp_path))}
    assert {found["first"].value, found["again"].value} == exits
    assert recipe.split("echo ")[1].partition(";")[0] in found["first"].shown
    assert found["ci"].value == 1
    first, second = (tmp_path / "places").read_text().splitlines()
    assert first == second
    assert str(Path.home()) not in first.split()
