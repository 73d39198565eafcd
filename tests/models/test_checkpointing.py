"""Activation checkpointing: the same gradients from fewer tensors kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ironclip.errors import ConfigError
from ironclip.models.adapters import Adapters
from ironclip.models.clip import CLIPModel
from ironclip.models.prompts import FreePrompts

DEEP = {"vision": {"layers": 6}, "text_cfg": {"context_length": 77, "width": 32, "heads": 2, "layers": 6}}
TEXTS = ["a dog", "a photo of a very small red bird that sits on a branch of an old tree."] * 8


def losses(model: CLIPModel, pixels: Tensor) -> dict[str, Tensor]:
    embedding, patches = model.embed_with_patches(pixels)
    return {
        "vision": model.embed_image(pixels).square().sum() + embedding.sum() + patches.square().sum(),
        "text": model.embed_text(TEXTS).square().sum(),
    }


def kept(model: CLIPModel, pixels: Tensor) -> dict[str, int]:
    """Count the bytes that a forward pass keeps for the backward pass, parameters and their casts apart."""
    known = {parameter.data_ptr() for parameter in model.parameters()}
    found = {}
    for name, run in (("vision", lambda: model.embed_image(pixels)), ("text", lambda: model.embed_text(TEXTS))):
        storages: dict[int, int] = {}

        def keep(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            if tensor.data_ptr() not in known:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            kept_alive = run()
        found[name] = sum(storages.values())
        del kept_alive
    return found


def gradients(model: CLIPModel, pixels: Tensor) -> dict[str, Tensor]:
    sum(losses(model, pixels).values()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_the_same_bit_for_bit(tiny_clip, pixels, fast, dtype):
    one, other = tiny_clip(**DEEP, fast=fast), tiny_clip(**DEEP, fast=fast)
    other.checkpointing = True
    found = []
    for model in (one, other):
        with model.computing(dtype):
            found.append(gradients(model, pixels))
    assert set(found[0]) == set(found[1])
    assert len(found[0]) > 100
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("tuned", ["prompts", "adapters"])
def test_gradients_of_pieces_are_the_same_bit_for_bit(tiny_clip, pixels, tuned):
    found = []
    for wanted in (False, True):
        model = tiny_clip(**DEEP).requires_grad_(False)
        if tuned == "prompts":
            model.attach(FreePrompts(text=[torch.ones(2, 32)] * 3, image=[torch.ones(2, 64)] * 3))
        else:
            model.attach(Adapters.drawn(model, 4, seed=0))
            model.adapters.image.gates = torch.ones(4, 6, 2)
            model.adapters.text.gates = torch.ones(16, 6, 2)
        model.checkpointing = wanted
        found.append(gradients(model, pixels))
    assert set(found[0]) == set(found[1]) != set()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("fast", [True, False])
def test_less_is_kept(tiny_clip, pixels, fast):
    model = tiny_clip(**DEEP, fast=fast)
    before = kept(model, pixels)
    model.checkpointing = True
    after = kept(model, pixels)
    for tower in ("vision", "text"):
        assert 0 < after[tower] < before[tower] / 4, tower


def test_an_attack_does_not_pay_for_it(tiny_clip, pixels):
    model = tiny_clip(**DEEP).requires_grad_(False)
    model.attach(FreePrompts(image=[torch.ones(2, 64)]))
    model.checkpointing = True
    assert model._fast.weights(torch.float32).recompute
    model.requires_grad_(False)
    leaf = pixels.requires_grad_(True)
    assert not model._fast.weights(torch.float32).recompute
    without = kept(model, leaf)["vision"]
    model.checkpointing = False
    assert kept(model, leaf)["vision"] == without


def test_it_can_be_switched_off_again(tiny_clip):
    model = tiny_clip()
    assert not model.checkpointing
    model.checkpointing = True
    assert model.checkpointing
    model.checkpointing = False
    assert not model._fast.weights(torch.float32).recompute
    assert not model.clip.transformer.grad_checkpointing


def test_a_tower_that_cannot_recompute_is_refused(tiny_clip, monkeypatch):
    model = tiny_clip()

    def refuse(enable=True):
        raise RuntimeError("not supported for this tower")

    monkeypatch.setattr(model.clip, "set_grad_checkpointing", refuse)
    with pytest.raises(ConfigError, match=r"cannot recompute its activations: not supported.*\n.*checkpointing off"):
        model.checkpointing = True
    assert not model.checkpointing
