"""CLIP's two towers with prompts, from the state dict, one image and one text at a time, in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def embed_image(
    state: Mapping[str, Tensor],
    image: Tensor,
    *,
    heads: int,
    prompts: Sequence[Tensor] = (),
    frame: Tensor | None = None,
    adapters: Sequence[tuple[Tensor, Tensor]] = (),
) -> Tensor:
    """Embed one normalised image `[3, R, R]`: `[D]`; the frame is `[3, R, R]`, 0 inside."""
    get = _reader(state, "visual.")
    image = image.double() if frame is None else image.double() + frame.double()
    kernel = get("conv1.weight")
    side = kernel.shape[-1]
    patches = []
    for top in range(0, image.shape[1], side):
        for left in range(0, image.shape[2], side):
            cut = image[:, top : top + side, left : left + side]
            patches.append(torch.stack([(cut * one).sum() for one in kernel]))
    rows = torch.stack([get("class_embedding"), *patches]) + get("positional_embedding")
    count = len(rows)
    if prompts:
        rows = torch.cat([rows, prompts[0].double()])
    rows = torch.stack([_norm(row, get("ln_pre.weight"), get("ln_pre.bias")) for row in rows])
    for layer in range(_layers(state, "visual.transformer.resblocks.")):
        if 0 < layer < len(prompts):
            rows = torch.cat([rows[:count], prompts[layer].double()])
        maps = adapters[layer] if adapters else None
        rows = _block(_reader(state, f"visual.transformer.resblocks.{layer}."), rows, heads, causal=False, maps=maps)
    return _norm(rows[0], get("ln_post.weight"), get("ln_post.bias")) @ get("proj")


def embed_text(
    state: Mapping[str, Tensor],
    ids: Sequence[int],
    *,
    heads: int,
    words: Sequence[Tensor] = (),
    adapters: Sequence[tuple[Tensor, Tensor]] = (),
) -> Tensor:
    """Embed one text, start and end token included but nothing after it, with learned words put behind the start."""
    get = _reader(state, "")
    table = get("token_embedding.weight")
    rows = [table[ids[0]], *(words[0].double() if words else []), *(table[number] for number in ids[1:])]
    positions = get("positional_embedding")
    x = torch.stack([row + positions[place] for place, row in enumerate(rows)])
    for layer in range(_layers(state, "transformer.resblocks.")):
        if 0 < layer < len(words):
            x = torch.stack([x[0], *words[layer].double(), *x[1 + len(words[layer]) :]])
        maps = adapters[layer] if adapters else None
        x = _block(_reader(state, f"transformer.resblocks.{layer}."), x, heads, causal=True, maps=maps)
    return _norm(x[-1], get("ln_final.weight"), get("ln_final.bias")) @ get("text_projection")


def _reader(state: Mapping[str, Tensor], prefix: str):
    return lambda name: state[prefix + name].detach().double()


def _layers(state: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in state if name.startswith(prefix))


def _norm(row: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = row.sum() / len(row)
    spread = ((row - mean) ** 2).sum() / len(row)
    return (row - mean) / math.sqrt(spread + 1e-5) * weight + bias


def _block(get, rows: Tensor, heads: int, *, causal: bool, maps: tuple[Tensor, Tensor] | None) -> Tensor:
    """Run one block on `[T, W]`, a head and a query at a time."""
    length, width = rows.shape
    depth = width // heads
    normed = torch.stack([_norm(row, get("ln_1.weight"), get("ln_1.bias")) for row in rows])
    joint = normed @ get("attn.in_proj_weight").T + get("attn.in_proj_bias")
    mixed = torch.zeros(length, width, dtype=torch.float64)
    for head in range(heads):
        at = slice(head * depth, (head + 1) * depth)
        query, key, value = (joint[:, part * width : (part + 1) * width][:, at] for part in range(3))
        for place in range(length):
            seen = place + 1 if causal else length
            scores = torch.stack([query[place] @ key[other] / math.sqrt(depth) for other in range(seen)])
            share = torch.exp(scores - scores.max())
            mixed[place, at] = (share / share.sum()) @ value[:seen]
    branch = mixed @ get("attn.out_proj.weight").T + get("attn.out_proj.bias")
    rows = rows + (branch if maps is None else branch + branch @ maps[0].double())
    normed = torch.stack([_norm(row, get("ln_2.weight"), get("ln_2.bias")) for row in rows])
    hidden = normed @ get("mlp.c_fc.weight").T + get("mlp.c_fc.bias")
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    branch = hidden @ get("mlp.c_proj.weight").T + get("mlp.c_proj.bias")
    return rows + (branch if maps is None else branch + branch @ maps[1].double())
