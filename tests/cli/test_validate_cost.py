"""`ironclip validate --cost`: what it prints, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ironclip.training.cost_rates import MeasuredRates

ROOT = Path(__file__).parents[2]


@pytest.fixture
def four_steps(model_folder, tmp_path):
    recipe = {
        "method": {"name": "tecoa"},
        "model": f"local-dir:{model_folder}",
        "data": {"train": "wds:{data}/toy?split=train", "hold_out": 6},
        "attack": {"name": "pgd_m", "steps": 1, "step_size": "4/255"},
        "optimisation": {"lr": 0.002, "steps": 4, "batch_size": 8},
    }
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe))
    return path


def test_the_command(ironclip, four_steps, monkeypatch):
    monkeypatch.setattr(MeasuredRates, "seconds", lambda *_: pytest.fail("measured, with a peak"))
    done = ironclip("validate", four_steps, "--cost", "--peak", "1e12", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["steps"] == 4
    assert found["peak_memory"] == pytest.approx(sum(found["memory"].values()))
    shown = ironclip("validate", four_steps, "--cost", "--peak", "1e12", "--gpus", "2").out
    for word in ("TFLOP: attack", "4 steps, 32 images", "on 2 devices", "GB a device", "assumed       peak: 1 TFLOP/s"):
        assert word in shown


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("quickstart/tecoa", "--peak", "1e12", "--gpus", "2"), "--peak, --gpus without --cost"),
        ((ROOT / "recipes/pretrain/tiny.yaml", "--cost"), "--cost does not count recipes of pre-training"),
        ((ROOT / "recipes/vlm/tiny-vlm.yaml", "--cost"), "--cost does not count recipes of a vision-language model"),
    ],
)
def test_the_command_refuses(words, complaint, ironclip):
    done = ironclip("validate", *words)
    assert done.code == 2
    assert complaint in done.err
