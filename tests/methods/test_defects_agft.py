"""Defects of published code that concern AGFT (methods plan 6): each check passes ours and fails a planted copy."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ironclip.attacks.base import ATTACKS
from ironclip.attacks.threat_model import ThreatModel
from ironclip.losses.classification import margin
from ironclip.methods.base import METHODS
from ironclip.models.zero_shot import encode_classes
from ironclip.randomness import SampleRandom
from ironclip.training.trainer import Trainer


def is_the_margin(function):
    """Of logits that are all negative, as cosines without a scale may be: best other minus true, by loops."""
    logits = torch.randn(9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 60
    labels = torch.arange(9) % 5
    expected = [
        max(value for index, value in enumerate(row) if index != label) - row[label]
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    return function(logits, labels).tolist() == pytest.approx(expected)


def test_d11_the_runner_up_is_a_class_and_not_a_zero():
    assert is_the_margin(margin)

    def masked_with_zero(logits, labels):
        others = logits * (1 - F.one_hot(labels, logits.shape[1]))
        return others.amax(dim=1) - logits.gather(1, labels[:, None])[:, 0]

    assert not is_the_margin(masked_with_zero)


def returns_images(one, attack):
    batch, threat = one.batch, ThreatModel(eps="8/255")
    objective = METHODS.create("tecoa").adversaries(batch, one.model, one.trainer.teacher)["image"].objective
    found = attack.perturb(objective, batch.pixels, threat, SampleRandom(0, batch.keys))
    return isinstance(found, Tensor) and found.shape == batch.pixels.shape


@pytest.mark.parametrize("name", ATTACKS.names("image"))
def test_d29_every_attack_that_can_be_named_returns_images(name, bench, monkeypatch):
    few = {"steps": 2, "queries": 4, "restarts": 1}
    known = {field.name for field in dataclasses.fields(ATTACKS.get(name))}
    one, attack = bench("agft", count=2), ATTACKS.create(name, {key: few[key] for key in few.keys() & known})
    assert returns_images(one, attack)
    monkeypatch.setattr(type(attack), "perturb", lambda *_: None)  # a branch without `return`
    assert not returns_images(one, attack)


def seen_by_training(one):
    """The prompts' features as training uses them, and as its templates say."""
    return one.batch.class_weights, encode_classes(one.model, *one.trainer.prompts)


def test_d10_text_features_are_those_of_this_runs_prompts(bench, monkeypatch):
    """AGFT computes them once a run; a store that knows only how many classes there are mixes up runs."""
    for classes in (3, 3, 10):
        used, fresh = seen_by_training(bench("agft", classes=classes))
        assert torch.equal(used, fresh)
    stored = {}

    def by_their_number(self, names, templates):
        return stored.setdefault(len(names), encode_classes(self.model, names, templates).half()).float()

    monkeypatch.setattr(Trainer, "_encode", by_their_number)
    used, fresh = seen_by_training(bench("agft"))
    assert not torch.equal(used, fresh)
