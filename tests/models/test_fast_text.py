"""The text tower's fast path against open_clip's own pass over the whole context."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ironclip.models.adapters import Adapters
from ironclip.models.clip import CLIPModel
from ironclip.models.fast_text import passes, why_not_text
from ironclip.models.prompts import FreePrompts
from ironclip.models.zero_shot import encode_classes
from oracles import prompts as oracle

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3}
TEXTS = [
    "a dog",
    "",
    "a photo of a very small red bird that sits on a branch of an old tree.",
    "7",
    "word " * 90,
    "three grey cats on a wall",
]
TOWERS = {
    "CLIP": {},
    "quick_gelu": {"quick_gelu": True},
    "custom_text": {"custom_text": True},
    "linear projection": {"custom_text": True, "text_cfg": TEXT | {"proj_bias": True}},
    "no projection": {"text_cfg": TEXT | {"proj_type": "none", "width": 16}},
}
OTHER_TOWERS = {
    "end token": ({"text_cfg": TEXT | {"pool_type": "last"}}, "does not read the end token"),
    "class token": ({"custom_text": True, "text_cfg": TEXT | {"embed_cls": True}}, "does not read the end token"),
    "not causal": ({"custom_text": True, "text_cfg": TEXT | {"no_causal_mask": True}}, "not causal"),
    "layer scale": ({"text_cfg": TEXT | {"ls_init_value": 0.1}}, "scale their branches"),
    "custom block": ({"text_cfg": TEXT | {"qk_norm": True}}, "not plain attention blocks"),
    "tanh gelu": ({"text_cfg": TEXT | {"act_kwargs": {"approximate": "tanh"}}}, "activation is GELU"),
}


@pytest.fixture(params=TOWERS)
def model(request, tiny_clip) -> CLIPModel:
    model = tiny_clip(**{"text_cfg": TEXT} | TOWERS[request.param])
    assert model.text_path == "on"
    return model


def stock(model: CLIPModel, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Run open_clip's own pass over all 77 positions."""
    return copy.deepcopy(model.clip).to(dtype).encode_text(ids)


def worst_relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double().flatten(1), expected.detach().double().flatten(1)
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_equals_the_stock_tower(model, dtype, tolerance):
    with model.computing(dtype):
        found = model.embed_text(TEXTS)
    assert found.dtype == dtype
    assert worst_relative(found, stock(model, model.tokenize(TEXTS), dtype)) < tolerance


def test_bfloat16_points_the_same_way(model):
    with model.computing(torch.bfloat16):
        found = model.embed_text(TEXTS)
    assert found.dtype == torch.float32
    expected = stock(model, model.tokenize(TEXTS))
    assert not torch.equal(found, expected)
    assert F.cosine_similarity(found, expected).min() >= 0.999


def test_gradients_equal_stock(model):
    """Those of all parameters, the token embeddings among them."""
    weights = torch.randn(6, 16, generator=torch.Generator().manual_seed(5))
    other = copy.deepcopy(model)
    (model.embed_text(TEXTS) * weights).sum().backward()
    (other.clip.encode_text(other.tokenize(TEXTS)) * weights).sum().backward()
    expected = {name: p.grad for name, p in other.clip.named_parameters() if p.grad is not None}
    assert any(name.endswith("token_embedding.weight") for name in expected)
    found = {name: p.grad for name, p in model.clip.named_parameters() if p.grad is not None}
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_bfloat16_gradients_are_float32_and_point_the_same_way(tiny_clip):
    one, other = tiny_clip(text_cfg=TEXT), tiny_clip(text_cfg=TEXT)
    with one.computing(torch.bfloat16):
        one.embed_text(TEXTS).square().sum().backward()
    other.embed_text(TEXTS).square().sum().backward()
    for found, expected in zip(one.text_parameters(), other.text_parameters(), strict=True):
        assert found.grad.dtype == torch.float32
        assert F.cosine_similarity(found.grad.flatten(), expected.grad.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pieces", ["none", "prompts", "adapters"])
def test_texts_do_not_depend_on_their_neighbours(tiny_clip, dtype, pieces):
    """Shuffled, alone, among longer ones, seventeen times the same: every bit stays."""
    model = tiny_clip(text_cfg=TEXT).requires_grad_(False)
    if pieces == "prompts":
        model.attach(FreePrompts(text=[0.1 * torch.ones(2, 32), torch.ones(2, 32)]))
    elif pieces == "adapters":
        model.attach(Adapters.drawn(model, 4, seed=0))
        for each in model.adapters.text.attention:
            each.outer.data += 0.1
    with model.computing(dtype), torch.no_grad():
        whole = model.embed_text(TEXTS)
        order = torch.tensor([3, 5, 0, 4, 2, 1])
        assert torch.equal(model.embed_text([TEXTS[i] for i in order]), whole[order])
        for row, text in enumerate(TEXTS):
            assert torch.equal(model.embed_text([text])[0], whole[row]), text
            assert torch.equal(model.embed_text([TEXTS[4]] * 20 + [text] * 17)[20:], whole[row].expand(17, -1)), text


def test_gates_stay_with_their_texts(tiny_clip):
    model = tiny_clip(text_cfg=TEXT)
    model.attach(Adapters.drawn(model, None, seed=0))
    for each in (*model.adapters.text.attention, *model.adapters.text.mlp):
        each.outer.data += 0.05 * torch.randn(each.outer.shape, generator=torch.Generator().manual_seed(1))
    whole = model.embed_text(TEXTS)
    gates = torch.zeros(6, 3, 2)
    gates[::2] = 1
    model.adapters.text.gates = gates
    mixed = model.embed_text(TEXTS)
    model.adapters.text.gates = None
    model.detach("adapters")
    plain = model.embed_text(TEXTS)
    assert not torch.allclose(plain, whole, rtol=1e-2)
    torch.testing.assert_close(mixed[::2], whole[::2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed[1::2], plain[1::2], rtol=1e-4, atol=1e-5)


def test_gradients_of_learned_words_equal_the_oracle(tiny_clip):
    """The slope along a drawn direction, against the oracle's difference quotient."""
    model = tiny_clip(text_cfg=TEXT)
    random = torch.Generator().manual_seed(2)
    model.attach(FreePrompts(text=[torch.randn(3, 32, generator=random) for _ in range(2)]))
    words = list(model.prompts.text)
    way = [torch.randn(3, 32, generator=random).double() for _ in words]
    state = model.clip.state_dict()
    texts = ["a dog", TEXTS[2]]
    with model.computing(torch.float64):
        gradients = torch.autograd.grad(model.embed_text(texts).sin().sum(), words)

    def value(step: float) -> float:
        moved = [layer.detach().double() + step * along for layer, along in zip(words, way, strict=True)]
        ids = [model.tokenize([text])[0].tolist() for text in texts]
        read = [each[: each.index(max(each)) + 1] for each in ids]
        return sum(float(oracle.embed_text(state, one, heads=2, words=moved).sin().sum()) for one in read)

    slope = sum(float((gradient * along).sum()) for gradient, along in zip(gradients, way, strict=True))
    assert slope == pytest.approx((value(1e-5) - value(-1e-5)) / 2e-5, rel=1e-5)


def test_passes_are_multiples_of_eight_up_to_the_context():
    ends = torch.tensor([3, 76, 7, 8, 0, 15, 71, 72])
    found = {length: rows.tolist() for length, rows in passes(ends, 77)}
    assert found == {8: [0, 2, 4], 16: [3, 5], 72: [6], 77: [1, 7]}
    assert [length for length, _ in passes(torch.tensor([2, 3]), 6)] == [6]
    assert [rows.tolist() for _, rows in passes(torch.tensor([], dtype=torch.long), 77)] == [[]]


def test_only_positions_that_matter_are_looked_up(tiny_clip):
    model = tiny_clip(text_cfg=TEXT)
    counts = []
    model.clip.token_embedding.register_forward_hook(lambda _, given, __: counts.append(given[0].numel()))
    model.embed_text(["a dog"] * 20 + [TEXTS[2]])
    assert counts == [32 * 8 + 16 * 24]


def test_no_text_gives_no_row(tiny_clip):
    assert tiny_clip(text_cfg=TEXT).embed_text(torch.zeros(0, 77, dtype=torch.long)).shape == (0, 16)


@pytest.mark.parametrize("part", ["positional_embedding", "ln_final", "text_projection", "token_embedding", "block"])
def test_the_working_copy_follows_the_parameters(tiny_clip, part):
    model = tiny_clip(text_cfg=TEXT).requires_grad_(False)
    before = model.embed_text(TEXTS)
    changed = model.clip.transformer.resblocks[1].mlp.c_fc if part == "block" else getattr(model.clip, part)
    changed = changed.weight if isinstance(changed, torch.nn.Module) else changed
    changed.mul_(1.5)
    found = model.embed_text(TEXTS)
    assert not torch.allclose(found, before, rtol=1e-3)
    assert worst_relative(found, stock(model, model.tokenize(TEXTS))) < 1e-5


def test_frozen_towers_keep_their_copy_and_give_no_gradient(tiny_clip):
    model = tiny_clip(text_cfg=TEXT).requires_grad_(False)
    with model.computing(torch.bfloat16):
        assert not model.embed_text(TEXTS).requires_grad
        kept = model._fast_text.weights(torch.bfloat16)
        model.embed_text(TEXTS)
        assert model._fast_text.weights(torch.bfloat16) is kept


def test_class_weights_are_float32_wherever_they_are_encoded(tiny_clip):
    model = tiny_clip(text_cfg=TEXT)
    outside = encode_classes(model, ["dog", "cat"], ["a {}"])
    with model.computing(torch.bfloat16):
        assert torch.equal(encode_classes(model, ["dog", "cat"], ["a {}"]), outside)
        assert not torch.equal(model.text_features(["a dog"])[0], outside[0])


@pytest.mark.parametrize("name", OTHER_TOWERS)
def test_other_towers_fall_back_to_open_clip(tiny_clip, name):
    changes, reason = OTHER_TOWERS[name]
    model = tiny_clip(**{"text_cfg": TEXT} | changes)
    assert reason in model.text_path
    assert reason in why_not_text(model.clip)
    assert model.fast_path == "on"
    ids = model.tokenize(TEXTS)
    assert torch.equal(model.embed_text(TEXTS), stock(model, ids))
    with model.computing(torch.float64):
        assert worst_relative(model.embed_text(TEXTS), stock(model, ids, torch.float64)) < 1e-10
    with model.computing(torch.bfloat16):
        assert F.cosine_similarity(model.embed_text(TEXTS), stock(model, ids)).min() > 0.99


def test_can_be_switched_off(tiny_clip):
    model = tiny_clip(text_cfg=TEXT, fast=False)
    assert model.text_path == "switched off"
    assert torch.equal(model.embed_text(TEXTS), stock(model, model.tokenize(TEXTS)))
