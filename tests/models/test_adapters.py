"""Adapters: how many parameters they are, that the weights can swallow them, and how they are dropped."""

from __future__ import annotations

import pytest
import torch

from ironclip.errors import ConfigError
from ironclip.models.adapters import Adapters, merge_adapters, rescaled
from ironclip.models.fast import pack
from ironclip.models.tuning import Tunable, tuned_parameters
from ironclip.randomness import SampleRandom
from oracles import prompts as oracle

TEXTS = ["a photo of a dog.", "a drawing of a cup"]


@pytest.fixture
def adapted(tiny_clip):
    """Make a tiny CLIP whose adapters do something."""

    def make(rank=None):
        model = tiny_clip()
        model.attach(Adapters.drawn(model, rank, seed=0))
        random = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in model.adapters.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
        return model.requires_grad_(False)

    return make


def logits(model, pixels):
    return model.logit_scale * model.image_features(pixels) @ model.text_features(TEXTS).T


@pytest.mark.parametrize(("rank", "count"), [(None, 20_447_232), (128, 7_864_320)])
def test_counts_of_the_paper(rank, count):
    with torch.device("meta"):
        adapters = Adapters((12, 768), (12, 512), rank)
    assert sum(parameter.numel() for parameter in adapters.parameters()) == count


@pytest.mark.parametrize("rank", [None, 4])
def test_fresh_adapters_change_nothing(rank, tiny_clip, pixels):
    model, plain = tiny_clip().requires_grad_(False), tiny_clip().requires_grad_(False)
    model.attach(Adapters.drawn(model, rank, seed=0))
    model.requires_grad_(False)
    torch.testing.assert_close(logits(model, pixels), logits(plain, pixels), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rank", [None, 4])
def test_merged_equals_unmerged(rank, adapted, tiny_clip, pixels):
    model = adapted(rank)
    names = {name for name, _ in tiny_clip().clip.named_parameters()}
    before, plain = logits(model, pixels), logits(tiny_clip(), pixels)
    merge_adapters(model)
    assert (before - plain).abs().max() > 1
    torch.testing.assert_close(logits(model, pixels), before, rtol=0, atol=1e-4)
    assert {name for name, _ in model.clip.named_parameters()} == names


@pytest.mark.parametrize("rank", [None, 4])
def test_both_towers_equal_the_oracle(rank, adapted, pixels):
    model = adapted(rank)
    state, adapters = model.clip.state_dict(), model.adapters
    image = oracle.embed_image(
        state, model.spec.preprocessing.normalise(pixels[:1].double())[0], heads=2, adapters=adapters.image.products()
    )
    with model.computing(torch.float64):
        torch.testing.assert_close(model.embed_image(pixels[:1].double())[0], image, rtol=1e-9, atol=1e-9)
    ids = model.tokenize(TEXTS[:1])[0].tolist()
    ids = ids[: ids.index(max(ids)) + 1]
    text = oracle.embed_text(state, ids, heads=2, adapters=adapters.text.products())
    torch.testing.assert_close(model.embed_text(TEXTS[:1])[0].double(), text, rtol=1e-4, atol=1e-5)


def test_a_dropped_adapter_is_one_that_is_not_there(adapted, pixels):
    """With every map kept and none scaled the pass is the whole one; with every map dropped the plain one."""
    model = adapted()
    whole = model.embed_image(pixels)
    tower = model.adapters.image
    tower.gates = torch.ones(4, 2, 2)
    torch.testing.assert_close(model.embed_image(pixels), whole, rtol=1e-4, atol=1e-5)
    tower.gates = torch.stack([torch.ones(2, 2), torch.zeros(2, 2)] * 2)
    mixed = model.embed_image(pixels)
    tower.gates = None
    model.detach("adapters")
    torch.testing.assert_close(mixed[::2], whole[::2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed[1::2], model.embed_image(pixels)[1::2], rtol=1e-4, atol=1e-5)


def test_gates_in_the_text_tower_belong_to_rows(adapted):
    model = adapted()
    whole = model.embed_text(TEXTS)
    model.adapters.text.gates = torch.tensor([[[1.0, 1.0]], [[0.0, 0.0]]])
    mixed = model.embed_text(TEXTS)
    model.adapters.text.gates = None
    model.detach("adapters")
    torch.testing.assert_close(mixed[0], whole[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed[1], model.embed_text(TEXTS)[1], rtol=1e-4, atol=1e-5)


def test_what_is_dropped_hangs_on_seed_epoch_and_key_only(adapted):
    model = adapted()
    adapters = model.adapters
    adapters.drop = 0.5

    def gates(keys, scope="train|0", seed=0):
        with model.dropping(SampleRandom(seed, keys, scope)):
            return adapters.image.gates.clone()

    keys = [str(number) for number in range(200)]
    first = gates(keys)
    assert adapters.image.gates is adapters.text.gates is None
    assert torch.equal(first[[7, 3]], gates(["7", "3"]))
    assert not torch.equal(first, gates(keys, scope="train|1"))
    assert not torch.equal(first, gates(keys, seed=1))
    assert set(first.unique().tolist()) == {0.0, 2.0}
    assert first.mean().item() == pytest.approx(1, abs=0.15)
    adapters.drop = 0.0
    with model.dropping(SampleRandom(0, keys)):
        assert adapters.image.gates is None


def test_gates_are_gone_after_an_error(adapted):
    model = adapted()
    model.adapters.drop = 0.5
    with pytest.raises(RuntimeError, match="stop"), model.dropping(SampleRandom(0, ["a"])):
        raise RuntimeError("stop")
    assert model.adapters.image.gates is None


def test_working_weights_follow_the_adapters(adapted, pixels):
    model = adapted()
    before = model.embed_image(pixels)
    with torch.no_grad():
        model.adapters.image.mlp[0].outer.add_(0.1)
    assert not torch.equal(model.embed_image(pixels), before)


def test_absent_adapters_leave_the_packed_weights_alone(tiny_clip):
    tower = tiny_clip().visual
    packed = pack(tower, torch.float32)
    for block, ours in zip(tower.transformer.resblocks, packed.blocks, strict=True):
        assert ours.adapters is None
        assert torch.equal(ours.out.weight, block.attn.out_proj.weight)
        assert torch.equal(ours.proj.bias, block.mlp.c_proj.bias)


def test_a_scale_reaches_the_product_once(adapted):
    for model in (adapted(), adapted(4)):
        products = [(first.clone(), second.clone()) for first, second in model.adapters.image.products()]
        with torch.no_grad():
            for name, parameter in model.adapters.named_parameters():
                parameter.copy_(rescaled(name, parameter, 0.5))
        for before, after in zip(products, model.adapters.image.products(), strict=True):
            torch.testing.assert_close(after[0], 0.5 * before[0])


def test_adapters_are_all_that_is_tuned(adapted):
    model = adapted(4)
    assert set(tuned_parameters(model, Tunable.ADAPTERS)) == {
        f"adapters.{name}" for name, _ in model.adapters.named_parameters()
    }
    assert not any(name.startswith("adapters") for name in tuned_parameters(model, Tunable.TEXT))


def test_merging_nothing_and_ranks_out_of_range_are_refused(tiny_clip):
    with pytest.raises(ConfigError, match="this model has no adapters to merge"):
        merge_adapters(tiny_clip())
    with pytest.raises(ConfigError, match=r"adapters of rank 0") as caught:
        Adapters.drawn(tiny_clip(), 0, seed=0)
    assert "at least 1" in caught.value.remedy
