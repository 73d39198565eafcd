"""The fast path against open_clip's own tower."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ironclip.models.clip import CLIPModel
from ironclip.models.fast import FastVision, why_not
from made_up_images import natural_like

OTHER_TOWERS = {
    "timm": ({"timm_model_name": "test_vit", "image_size": 160}, "TimmModel is not"),
    "resnet": ({"layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "image_size": 64}, "ModifiedResNet is not"),
    "attention pool": ({"attentional_pool": True, "attn_pooler_heads": 2}, "does not pool by the class token"),
    "average pool": ({"pool_type": "avg"}, "does not pool by the class token"),
    "patch dropout": ({"patch_dropout": 0.5}, "drops patches"),
    "no first norm": ({"no_ln_pre": True}, "layer norms stand elsewhere"),
    "norm after pool": ({"final_ln_after_pool": True}, "layer norms stand elsewhere"),
    "layer scale": ({"ls_init_value": 0.1}, "scale their branches"),
    "custom block": ({"qk_norm": True}, "not plain attention blocks"),
    "tanh gelu": ({"act_kwargs": {"approximate": "tanh"}}, "activation is GELU"),
}


def stock(model: CLIPModel, pixels: Tensor) -> Tensor:
    """Run open_clip's own tower on pixels at its own resolution, in their precision."""
    tower = copy.deepcopy(model.visual).to(pixels.dtype)
    return tower(model.spec.preprocessing.normalise(pixels))


def input_gradient(run, pixels: Tensor) -> Tensor:
    """Differentiate a fixed random projection of the embedding."""
    leaf = pixels.clone().requires_grad_(True)
    embedding = run(leaf)
    weights = torch.randn(embedding.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((embedding.double() * weights).sum(), leaf)
    return gradient


def worst_relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double().flatten(1), expected.detach().double().flatten(1)
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())


@pytest.fixture(params=[False, True], ids=["gelu", "quickgelu"])
def model(request, tiny_clip) -> CLIPModel:
    model = tiny_clip(quick_gelu=request.param)
    assert model.fast_path == "on"
    return model.requires_grad_(False)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_equals_the_stock_tower(model, pixels, dtype, tolerance):
    pixels = pixels.to(dtype)
    with model.computing(dtype):
        embedding = model.embed_image(pixels)
        gradient = input_gradient(model.embed_image, pixels)
    assert embedding.dtype == dtype
    assert worst_relative(embedding, stock(model, pixels)) < tolerance
    assert worst_relative(gradient, input_gradient(lambda x: stock(model, x), pixels)) < tolerance


def test_bfloat16_points_the_same_way(model, pixels):
    with model.computing(torch.bfloat16):
        embedding = model.embed_image(pixels)
        gradient = input_gradient(model.embed_image, pixels)
    assert embedding.dtype == gradient.dtype == torch.float32
    assert F.cosine_similarity(embedding, stock(model, pixels)).min() >= 0.999
    expected = input_gradient(lambda x: stock(model, x), pixels)
    assert F.cosine_similarity(gradient.flatten(1), expected.flatten(1)).min() >= 0.99


def test_weight_gradients_equal_stock(tiny_clip, pixels):
    fast, slow = tiny_clip(), tiny_clip(fast=False)
    for each in (fast, slow):
        each.embed_image(pixels).square().sum().backward()
    wanted = dict(slow.visual.named_parameters())
    for name, parameter in fast.visual.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-4, atol=1e-5, msg=name)


def test_bfloat16_weight_gradients_are_float32_and_point_the_same_way(tiny_clip, pixels):
    fast, slow = tiny_clip(), tiny_clip(fast=False)
    slow.embed_image(pixels).square().sum().backward()
    with fast.computing(torch.bfloat16):
        fast.embed_image(pixels).square().sum().backward()
    for found, expected in zip(fast.visual.parameters(), slow.visual.parameters(), strict=True):
        assert found.grad.dtype == torch.float32
        assert F.cosine_similarity(found.grad.flatten(), expected.grad.flatten(), dim=0) > 0.99


def test_frozen_parameters_get_no_gradient(model, pixels):
    model.embed_image(pixels.requires_grad_(True)).sum().backward()
    assert pixels.grad is not None
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "change",
    [
        lambda model: step(model, torch.optim.SGD, lr=0.1),
        lambda model: step(model, torch.optim.AdamW, lr=0.1, foreach=True),
        lambda model: step(model, torch.optim.AdamW, lr=0.1, fused=True),
        lambda model: model.load_state_dict({name: 1.1 * tensor for name, tensor in model.state_dict().items()}),
        lambda model: setattr(model.visual.proj, "data", model.visual.proj.data * 2),
        lambda model: model.to(torch.float64),
    ],
    ids=["sgd", "foreach", "fused", "load_state_dict", "data swapped", "moved"],
)
def test_the_working_copy_follows_the_parameters(tiny_clip, pixels, dtype, change):
    model = tiny_clip()
    with model.computing(dtype), torch.no_grad():
        model.embed_image(pixels)
        change(model)
        found = model.embed_image(pixels)
        expected = CLIPModel(model.clip, model.tokenizer, model.spec)
        with expected.computing(dtype):
            torch.testing.assert_close(found, expected.embed_image(pixels), rtol=0, atol=0)


def step(model: CLIPModel, optimiser: type[torch.optim.Optimizer], **settings) -> None:
    for parameter in model.visual.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimiser(model.visual.parameters(), **settings).step()


def test_the_working_copy_is_kept_while_nothing_changes(model, pixels):
    with model.computing(torch.bfloat16):
        model.embed_image(pixels)
        first = model._fast.weights(torch.bfloat16)
        model.embed_image(pixels)
        assert model._fast.weights(torch.bfloat16) is first


def test_a_copy_made_in_inference_mode_serves_an_attack_later(model, pixels):
    with model.computing(torch.bfloat16):
        with torch.inference_mode():
            model.embed_image(pixels)
        assert input_gradient(model.embed_image, pixels).abs().max() > 0


def test_a_deep_copy_reads_its_own_weights(model, pixels):
    before = model.embed_image(pixels)
    student = copy.deepcopy(model)
    with torch.no_grad():
        student.visual.proj.mul_(2)
    torch.testing.assert_close(student.embed_image(pixels), 2 * before)
    torch.testing.assert_close(model.embed_image(pixels), before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_do_not_depend_on_their_neighbours(model, dtype):
    tile, others = natural_like(16, 32), natural_like(16, 32, seed=1)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    with model.computing(dtype):
        whole = model.embed_image(tile)
        torch.testing.assert_close(model.embed_image(tile[order]), whole[order], rtol=0, atol=0)
        mixed = torch.cat([others[:5], tile[5:6], others[6:]])
        torch.testing.assert_close(model.embed_image(mixed)[5], whole[5], rtol=0, atol=0)


@pytest.mark.parametrize("name", OTHER_TOWERS)
def test_other_towers_fall_back_to_open_clip(tiny_clip, name):
    vision, reason = OTHER_TOWERS[name]
    custom = {"custom_text": True} if name == "timm" else {}
    model = tiny_clip(vision=vision, **custom)
    assert reason in model.fast_path
    assert reason in why_not(model.visual)
    side = model.input_resolution
    pixels = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    assert worst_relative(model.embed_image(pixels), stock(model, pixels)) < 1e-5
    assert input_gradient(model.embed_image, pixels).abs().max() > 0
    with model.computing(torch.float64):
        assert worst_relative(model.embed_image(pixels.double()), stock(model, pixels.double())) < 1e-10
    with model.computing(torch.bfloat16):
        assert F.cosine_similarity(model.embed_image(pixels), stock(model, pixels)).min() > 0.99


def test_can_be_switched_off(tiny_clip, pixels):
    slow = tiny_clip(fast=False)
    assert slow.fast_path == "switched off"
    torch.testing.assert_close(slow.embed_image(pixels), stock(slow, pixels), rtol=0, atol=0)


def test_why_not_has_no_objection_to_the_tower_it_serves(tiny_clip):
    assert why_not(tiny_clip().visual) is None
    assert isinstance(tiny_clip()._fast, FastVision)
