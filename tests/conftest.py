from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ironclip.models._architecture import build_clip, preprocessing_of
from ironclip.models._weights import tensors_sha256
from ironclip.models.clip import CLIPModel, ModelSpec, tokenizer_for
from made_up_images import natural_like

TINY_ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def tiny_clip() -> Callable[..., CLIPModel]:
    """Make tiny CLIPs with fixed random weights: 32 pixels, 17 tokens of width 64, two blocks, logit scale 100.

    Call it for a fresh copy. Keywords: `fast`; `seed`; `vision`, changes to vision_cfg; others change the architecture.
    """
    built: dict[str, nn.Module] = {}
    tokenizer = tokenizer_for(TINY_ARCHITECTURE)

    def make(*, fast: bool = True, seed: int = 0, vision: dict[str, Any] | None = None, **changes: Any) -> CLIPModel:
        architecture = copy.deepcopy(TINY_ARCHITECTURE) | changes
        architecture["vision_cfg"] |= vision or {}
        key = f"{seed} {architecture}"
        if key not in built:
            built[key] = _with_all_weights_alive(build_clip(architecture, "tiny_clip", seed=seed), seed)
        clip = copy.deepcopy(built[key])
        preprocessing = preprocessing_of(clip, {}, "tiny_clip")
        spec = ModelSpec("tiny_clip", architecture, tensors_sha256(clip.state_dict()), preprocessing)
        return CLIPModel(clip, tokenizer, spec, fast=fast)

    return make


@pytest.fixture
def pixels() -> Tensor:
    """Give four natural-like images `[4, 3, 32, 32]` in [0, 1], float32."""
    return natural_like(4, 32)


def _with_all_weights_alive(clip: nn.Module, seed: int) -> nn.Module:
    """Move the biases and gains away from 0 and 1, where forgetting one would go unnoticed."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in clip.named_parameters():
            if name == "logit_scale":
                parameter.fill_(math.log(100))
            elif parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=random))
    return clip


# Stored texts

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden anew, to be read in review")


class Golden:
    """Stored texts: a difference fails the test and is shown; `--update-golden` stores what came out."""

    def __init__(self, update: bool) -> None:
        self.update = update

    def check(self, name: str, text: str) -> None:
        path = GOLDEN / name
        if self.update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        assert path.is_file(), f"{path} is missing: run pytest --update-golden, read it, commit it"
        stored = path.read_text(encoding="utf-8")
        difference = difflib.unified_diff(stored.splitlines(), text.splitlines(), "stored", "now", lineterm="")
        assert stored == text, "\n".join(difference)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.config.getoption("--update-golden"))
