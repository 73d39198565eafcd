"""The text tower on as many tokens as the texts have: most phrases need eight of the 77 places.

The tower is causal and reads its result off the end token, so what follows that token changes nothing.
"""

from __future__ import annotations

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from ironclip.errors import ConfigError
from ironclip.models.clip import CLIPModel

# Texts of one length class share a pass: a long caption would fill up all others of the batch.
_PASSES = 4


def check_text_tower(model: CLIPModel) -> None:
    """Refuse a text tower that cannot be read at part of its length.

    Raises:
        ConfigError: It is not causal, or reads its result elsewhere than off the end token.
    """
    clip = model.clip
    if not isinstance(clip, open_clip.CLIP) or clip.text_pool_type != "argmax" or clip.attn_mask is None:
        raise ConfigError(
            f"the text tower of {model.spec.origin} is not CLIP's own (causal, read off the end token).",
            "Take an architecture without custom_text, pool_type and no_causal_mask in text_cfg.",
        )


def text_features(model: CLIPModel, ids: Tensor) -> Tensor:
    """Embed token ids as unit rows, float32 `[N, D]`; what `CLIPModel.text_features` gives, in less time.

    Args:
        model: A model that `check_text_tower` does not refuse.
        ids: Token ids `[N, L]`, filled up with zeros behind the end token.
    """
    lengths = ids.argmax(dim=1) + 1  # the end token is the highest
    order = lengths.argsort(stable=True)
    parts = [_embed(model, part) for part in order.tensor_split(min(_PASSES, len(order))) for part in [ids[part]]]
    rows = torch.cat(parts)
    return F.normalize(rows[order.argsort()].float(), dim=-1)


def _embed(model: CLIPModel, ids: Tensor) -> Tensor:
    clip = model.clip
    ends = ids.argmax(dim=1)
    length = int(ends.max()) + 1
    x = clip.token_embedding(ids[:, :length]) + clip.positional_embedding[:length]
    x = clip.transformer(x, attn_mask=clip.attn_mask[:length, :length])
    last = clip.ln_final(x[torch.arange(len(ids), device=ids.device), ends])
    projected: Tensor = clip.text_projection(last) if callable(clip.text_projection) else last @ clip.text_projection
    return projected
