"""The item that compares fast with stock can fail: it is shown towers that are slightly off."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from acceptance.claims import Context

from acceptance import speed_equal
from ironclip.models.fast import FastVision
from ironclip.models.fast_text import FastText

BOUNDS = {claim.name: claim.bound for claim in speed_equal.fast_equal.claims}


@pytest.fixture
def figures(tmp_path, monkeypatch):
    """Measure the short form against open_clip alone."""

    def measure():
        monkeypatch.setattr(speed_equal, "_transformers", speed_equal._open_clip)
        return {found.claim: found.value for found in speed_equal.fast_equal.measure(Context(tmp_path, short=True))}

    return measure


def held(found):
    return {name for name, value in found.items() if BOUNDS[name].holds(value)}


def test_the_fast_paths_hold(figures):
    found = figures()
    assert list(found) == list(BOUNDS)
    assert held(found) == set(BOUNDS)


@pytest.mark.parametrize(("tower", "name"), [(FastVision, "vision"), (FastText, "text")])
def test_a_norm_that_is_slightly_off_is_noticed(figures, monkeypatch, tower, name):
    weights = tower.weights
    monkeypatch.setattr(tower, "weights", lambda self, dtype: replace(weights(self, dtype), eps=2e-3))
    other = {"vision": "text", "text": "vision"}[name]
    fails = {
        f"{package}_{name}_{what}" for package in ("open_clip", "transformers") for what in ("logits", "gradients")
    }
    found = held(figures())
    assert not found & fails
    assert {claim for claim in BOUNDS if other in claim} <= found


def test_a_coarser_precision_is_noticed(figures, monkeypatch):
    embed = FastText.embed

    def coarse(self, ids, dtype):
        embedding = embed(self, ids, dtype)
        return embedding + 0.1 * embedding.norm(dim=1).mean() if dtype == torch.bfloat16 else embedding

    monkeypatch.setattr(FastText, "embed", coarse)
    assert set(BOUNDS) - held(figures()) == {"open_clip_text_bfloat16", "transformers_text_bfloat16"}


def test_modules_of_the_item_exist():
    assert all(find_spec(module) is not None for module in speed_equal.fast_equal.modules)
