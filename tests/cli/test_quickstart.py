"""`ironclip quickstart` as a user sees it, in small."""

from __future__ import annotations

from functools import partial

import pytest
import yaml

import ironclip.quickstart
from ironclip.quickstart import PLAN, Plan


@pytest.fixture
def in_small(recipe_file, monkeypatch, tmp_path):
    """Let the command do a smaller plan: one recipe of two steps, eight digits."""
    written = yaml.safe_load(recipe_file().read_text())
    recipe = tmp_path / "tecoa.yaml"
    recipe.write_text(yaml.safe_dump(written | {"data": {"train": "bundled:digits?split=train", "hold_out": 0}}))
    plan = Plan(recipes=(str(recipe),), datasets=("digits",), steps=1, images=8)
    monkeypatch.setattr(ironclip.quickstart, "quickstart", partial(ironclip.quickstart.quickstart, plan=plan))


@pytest.mark.usefixtures("in_small")
def test_it_says_what_it_does_and_ends_with_a_table(ironclip, model_folder, tmp_path):
    result = ironclip("quickstart", "--model", f"local-dir:{model_folder}", "--seed", 1)
    assert result.code == 0, result.err
    assert "the same command goes on" in result.err
    for number, words in enumerate(["Attack the model as it is: 8 images", "Tune it by tecoa", "Attack what tecoa"], 1):
        assert f"[{number}/4] {words}" in result.err
    assert "attacking original: 24/24, digits:" in result.err

    lines = result.out.strip().splitlines()
    header, rule, original, tecoa = lines[:4]
    assert header.split("  ")[0] == "images"
    assert f"right under attack, {PLAN.eps[1]}" in header
    assert set(rule) == {"-", " "}
    assert original.split()[:2] == ["Digits", "original"]
    assert tecoa.split()[0] == "tecoa"
    assert original.count("%") == tecoa.count("%") == 2
    assert f"8 images a set, 95 % intervals. Attack: PGD-1, Linf {PLAN.eps[1]}, native 32x32, white-box." in result.out
    assert "Tuned on bundled:digits?split=train; on none of the images in the table." in result.out
    assert "quickstart/report.html" in result.out
    assert (tmp_path / "quickstart" / "report.html").is_file()
    assert len(lines[lines.index("What to try next:") + 1 :]) == 3
    assert "ironclip eval quickstart/train/tecoa --suite bundled" in result.out


def test_a_model_that_is_not_there(ironclip):
    result = ironclip("quickstart", "--model", "local-dir:nowhere")
    assert result.code == 2
    assert "Error: " in result.err
    assert "nowhere does not exist" in result.err
    assert result.out == ""


def test_train_and_validate_take_a_bundled_recipe_by_name(ironclip, model_folder):
    assert "shapes" in ironclip("validate", "quickstart/tecoa").out
    short = ("--set", "optimisation.epochs=null", "--set", "optimisation.steps=1", "--set", "optimisation.batch_size=8")
    place = ("--set", f"model=local-dir:{model_folder}", "--set", "optimisation.warmup_steps=0", "--limit", 8)
    result = ironclip("train", "quickstart/fare", *short, *place)
    assert result.code == 0, result.err
    assert "Done: runs/train/fare" in result.out
    assert ironclip("train", "quickstart/nothing").code == 2
