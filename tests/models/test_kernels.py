"""Kernels by name and by measuring, as far as a CPU can tell."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from ironclip.errors import ConfigError
from ironclip.models import fast, kernels
from ironclip.models.fast_blocks import mix
from ironclip.models.kernels import choose_kernels, fastest, measure_kernels
from ironclip.models.prompts import FreePrompts

TEXTS = ["a dog", "a photo of a very small red bird that sits on a branch of an old tree."]


def clock(seconds):
    """Make a timer that runs what it is given and says how long the kernels in use are meant to take."""
    ran = []

    def timer(run):
        gradient = run()
        assert gradient.abs().max() > 0
        ran.append(timer.model.fast_path)
        return seconds[ran[-1]]

    timer.ran = ran
    return timer


PATHS = {
    "products": "on",
    "fused": "on, fused attention",
    "stock": "open_clip's own pass was measured faster",
}


@pytest.mark.parametrize("masked", [None, "causal", "rows"])
def test_fused_attention_is_batched_products(masked):
    random = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(6, 9, 8, generator=random) for _ in range(3))
    mask = torch.full((9, 9), -torch.inf).triu(1)
    if masked == "rows":
        query, mask = query[:, :1], mask[torch.tensor([2, 5, 8])][:, None]
    given = None if masked is None else mask
    expected = mix(query, key, value, 2, mask=given)
    torch.testing.assert_close(mix(query, key, value, 2, mask=given, fused=True), expected, rtol=1e-5, atol=1e-6)
    assert expected.shape == (3, query.shape[1], 16)


@pytest.mark.parametrize("name", ["fused", "stock"])
def test_every_kernel_gives_the_same_embeddings_and_gradients(tiny_clip, pixels, name):
    one, other = tiny_clip(), tiny_clip()
    other.use_kernels(name)
    assert other.fast_path == PATHS[name]
    found = []
    for model in (one, other):
        leaf = pixels.clone().requires_grad_(True)
        embedding = model.embed_image(leaf)
        (embedding.square().sum() + model.embed_text(TEXTS).square().sum()).backward()
        found.append([embedding.detach(), leaf.grad, model.clip.transformer.resblocks[0].attn.in_proj_weight.grad])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compiled_is_embed_in_one_graph(tiny_clip, pixels, monkeypatch):
    """Traced whole, by a backend that needs no compiler; another step of the optimiser does not trace anew."""
    compiled = torch.compile
    traced = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", lambda run: compiled(run, backend=traced, fullgraph=True))
    fast.compiled_embed.cache_clear()
    model = tiny_clip().requires_grad_(False)
    found = []
    for name in ("products", "compiled", "products", "compiled"):
        model.use_kernels(name)
        leaf = pixels.clone().requires_grad_(True)
        embedding = model.embed_image(leaf)
        (gradient,) = torch.autograd.grad(embedding.square().sum(), leaf)
        found.append((embedding.detach(), gradient))
        if len(found) == 2:
            assert model.fast_path == "on, compiled"
            model.visual.proj.mul_(1.5)
    for expected, ours in (found[:2], found[2:]):
        torch.testing.assert_close(ours[0], expected[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours[1], expected[1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[1][0], found[3][0])
    assert traced.frame_count == 1
    fast.compiled_embed.cache_clear()


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({"products": 1.0, "fused": 0.91, "stock": 0.95}, "products"),
        ({"products": 1.0, "fused": 0.9, "stock": 0.95}, "fused"),
        ({"products": 1.0, "fused": 0.9, "stock": 0.5}, "stock"),
        ({"products": 1.0, "fused": 2.0}, "products"),
        ({"products": 1.0}, "products"),
    ],
)
def test_another_kernel_has_to_save_a_tenth(seconds, chosen):
    assert fastest(seconds) == chosen


@pytest.mark.parametrize("name", PATHS)
def test_the_fastest_is_chosen_and_named(tiny_clip, pixels, caplog, name):
    model = tiny_clip()
    expected = model.embed_image(pixels)
    timer = clock({path: 1.0 if kernel == name else 2.0 for kernel, path in PATHS.items()})
    timer.model = model
    with caplog.at_level(logging.INFO, logger="ironclip.models.kernels"):
        assert choose_kernels(model, 4, torch.float32, timer=timer) == name
    assert model.fast_path == PATHS[name]
    assert timer.ran == [*PATHS.values()] * (kernels.ROUNDS + 1)
    assert f"chosen: {name}" in caplog.text
    torch.testing.assert_close(model.embed_image(pixels), expected, rtol=1e-4, atol=1e-5)


def test_medians_are_taken_without_the_first_round(tiny_clip):
    model = tiny_clip()
    readings = iter([100.0, *[1.0, 2.0, 3.0, 4.0, 90.0]])
    found = measure_kernels(model, 4, torch.float32, candidates=["fused"], timer=lambda run: next(readings))
    assert found == {"fused": 3.0}


def test_measuring_leaves_the_model_as_it_was(tiny_clip):
    model = tiny_clip()
    model.visual.proj.requires_grad_(False)
    asked = [parameter.requires_grad for parameter in model.parameters()]

    def stop(run):
        run()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_kernels(model, 4, torch.bfloat16, timer=stop)
    assert [parameter.requires_grad for parameter in model.parameters()] == asked
    assert model.compute_dtype == torch.float32
    assert model.fast_path == "on"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_on_the_cpu_nothing_is_measured(tiny_clip, monkeypatch):
    monkeypatch.setattr(kernels, "measure_kernels", lambda *_, **__: pytest.fail("measured on a CPU"))
    model = tiny_clip()
    assert choose_kernels(model, 16, torch.float32) is None
    assert model.fast_path == "on"


def test_nothing_is_measured_without_the_fast_path(tiny_clip):
    model = tiny_clip(fast=False)
    assert choose_kernels(model, 16, torch.float32, timer=lambda run: pytest.fail("measured")) is None
    with pytest.raises(ConfigError, match='kernels "fused" for tiny_clip, whose fast path is: switched off'):
        model.use_kernels("fused")


def test_the_stock_pass_is_not_offered_to_a_model_with_prompts(tiny_clip):
    model = tiny_clip()
    model.attach(FreePrompts(image=[torch.ones(2, 64)]))
    assert model.kernels_offered == ("products", "fused", "compiled")
    with pytest.raises(ConfigError, match=r'kernels "stock".*\n.*products, fused, compiled'):
        model.use_kernels("stock")


def test_prompts_end_the_stock_pass(tiny_clip, pixels):
    models = [tiny_clip(), tiny_clip()]
    models[0].use_kernels("stock")
    for model in models:
        model.attach(FreePrompts(image=[torch.ones(2, 64)]))
    assert models[0].fast_path == "on"
    assert torch.equal(models[0].embed_image(pixels), models[1].embed_image(pixels))


def test_a_copy_of_a_model_runs_on_the_same_kernels(tiny_clip, pixels):
    """A run copies its teacher off the student after the kernels are chosen."""
    model = tiny_clip()
    for name in ("fused", "stock"):
        model.use_kernels(name)
        teacher = copy.deepcopy(model)
        assert teacher.fast_path == PATHS[name]
        assert torch.equal(teacher.embed_image(pixels), model.embed_image(pixels))
        teacher.use_kernels("products")
        assert model.fast_path == PATHS[name]
        assert not torch.equal(teacher.embed_image(pixels), model.embed_image(pixels))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_cuda_one_of_the_candidates_is_chosen(tiny_clip):
    model = tiny_clip().cuda()
    assert choose_kernels(model, 64, torch.bfloat16) in kernels.CANDIDATES
