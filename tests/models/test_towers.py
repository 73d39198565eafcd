from __future__ import annotations

import pytest
import torch

from ironclip.errors import ConfigError
from ironclip.models.adapters import Adapters
from ironclip.models.towers import join_towers

TEXTS = ["a red circle", "a dog"]


def test_each_tower_is_that_of_its_model(tiny_clip, pixels):
    image, text = tiny_clip(seed=1), tiny_clip(seed=2)
    with torch.no_grad():
        text.log_logit_scale.fill_(1.0)
    joined = join_towers(image, text)
    with torch.no_grad():
        assert torch.equal(joined.embed_image(pixels), image.embed_image(pixels))
        assert torch.equal(joined.embed_text(TEXTS), text.embed_text(TEXTS))
        assert not torch.equal(joined.embed_text(TEXTS), image.embed_text(TEXTS))
    assert joined.logit_scale == image.logit_scale
    assert len({image.spec.sha256, text.spec.sha256, joined.spec.sha256}) == 3
    with torch.no_grad():
        joined.clip.visual.proj.zero_()  # a copy: the image's own model stays
        assert image.embed_image(pixels).abs().sum() > 0


def test_towers_that_do_not_belong_together_are_refused(tiny_clip):
    with pytest.raises(ConfigError, match="embed_dim 16, not 8"):
        join_towers(tiny_clip(), tiny_clip(embed_dim=8))
    adapted = tiny_clip()
    adapted.attach(Adapters.drawn(adapted, 2, 0))
    with pytest.raises(ConfigError, match="carries prompts or adapters"):
        join_towers(tiny_clip(), adapted)
