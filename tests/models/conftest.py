from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ironclip.models.sources import CONFIG, WEIGHTS, save_model


@pytest.fixture(scope="session")
def saved_clip(tiny_clip, tmp_path_factory) -> Path:
    """Save the tiny CLIP once; read it, never write there."""
    folder = tmp_path_factory.mktemp("saved") / "clip"
    save_model(tiny_clip(), folder)
    return folder


@pytest.fixture
def folder(saved_clip, tmp_path) -> Callable[..., Path]:
    """Make a folder with the tiny CLIP, its configuration changed: `folder("name", model={...}, top={...})`."""

    def make(name: str = "clip", *, model: dict[str, Any] | None = None, top: dict[str, Any] | None = None) -> Path:
        place = tmp_path / name
        place.mkdir(parents=True)
        shutil.copy(saved_clip / WEIGHTS, place)
        config = json.loads((saved_clip / CONFIG).read_text()) | (top or {})
        config["model_cfg"] |= model or {}
        (place / CONFIG).write_text(json.dumps(config))
        return place

    return make
