"""Muon and AdamW as one optimiser, and the trapezoid of the learning rate."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ironclip.errors import ConfigError
from ironclip.pretraining.optimisers import build_optimisers, learning_rate
from ironclip.pretraining.recipe import ImagesSection

SOURCES = {"toy": {"source": "wds:toy", "per_batch": 4}}


def section(**changes):
    return ImagesSection.model_validate({"sources": SOURCES, "steps": 100, "warmup_steps": 10, **changes})


def parameters():
    random = torch.Generator().manual_seed(0)
    shapes = {
        "visual.transformer.resblocks.0.attn.in_proj_weight": (12, 4),
        "visual.transformer.resblocks.0.attn.in_proj_bias": (12,),
        "visual.conv1.weight": (4, 3, 2, 2),
        "visual.class_embedding": (4,),
        "visual.proj": (4, 3),
        "logit_scale": (),
    }
    return {name: nn.Parameter(torch.randn(shape, generator=random)) for name, shape in shapes.items()}


def step(own, optimiser, number):
    random = torch.Generator().manual_seed(number)
    for parameter in own.values():
        parameter.grad = torch.randn(parameter.shape, generator=random)
    optimiser.step()
    optimiser.zero_grad()
    assert all(parameter.grad is None for parameter in own.values())


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_restored_optimiser_goes_on_bit_for_bit(kind):
    whole, settings = parameters(), section(optimiser=kind)
    optimiser = build_optimisers(whole, settings)
    for number in range(3):
        step(whole, optimiser, number)
    other = {name: nn.Parameter(value.detach().clone()) for name, value in whole.items()}
    restored = build_optimisers(other, settings)
    restored.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    step(whole, optimiser, 9)
    step(other, restored, 9)
    for name in whole:
        assert torch.equal(whole[name], other[name]), name


def test_muon_has_the_matrices_of_the_blocks_and_only_these():
    own = parameters()
    muon, adamw = build_optimisers(own, section()).parts
    (matrix,) = muon.param_groups[0]["params"]
    assert matrix is own["visual.transformer.resblocks.0.attn.in_proj_weight"]
    decays = {id(p): group["weight_decay"] for group in adamw.param_groups for p in group["params"]}
    assert len(decays) == 5
    assert decays[id(own["visual.proj"])] > 0
    assert decays[id(own["visual.class_embedding"])] == 0
    assert decays[id(own["logit_scale"])] == 0


def test_torch_without_muon_is_told(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ConfigError, match=r"has no Muon(.|\n)*optimiser: adamw"):
        build_optimisers(parameters(), section())
    build_optimisers(parameters(), section(optimiser="adamw"))


def test_the_rate_rises_stays_and_falls():
    settings = section(lr=0.5, decay=0.2)
    rates = [learning_rate(number, settings) for number in range(100)]
    assert rates[:10] == pytest.approx([0.05 * (number + 1) for number in range(10)])
    assert rates[10:80] == [0.5] * 70
    assert rates[80:] == pytest.approx([0.5 * (100 - number) / 20 for number in range(80, 100)])
