"""Two small sources: classes with a shape in each image, and captioned images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ironclip.pretraining.corpus import Corpus, read_corpus
from ironclip.pretraining.recipe import ImagesSection
from made_up_shards import encoded, write_shard

NAMES = ("cat", "dog", "bird", "wolf")


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold `toy` (40 images of four classes), `said` (10 with two captions each)."""
    root = tmp_path_factory.mktemp("data")
    members: dict[str, bytes] = {}
    for number in range(40):
        members[f"{number:06d}.png"] = encoded(number, 32)
        members[f"{number:06d}.cls"] = str(number % 4).encode()
    write_shard(root / "toy" / "train-0000.tar", members)
    (root / "toy" / "classes.txt").write_text("\n".join(NAMES))
    (root / "toy" / "templates.json").write_text('["a photo of a {}.", "a {}"]')
    classes = [{"label": label, "name": name, "synonyms": [name, f"small {name}"]} for label, name in enumerate(NAMES)]
    (root / "toy" / "classes.json").write_text(json.dumps(classes))
    said: dict[str, bytes] = {}
    for number in range(10):
        said[f"{number:06d}.png"] = encoded(100 + number, 32)
        captions = [f"number {number} on a table", f"a picture with a {number}"]
        said[f"{number:06d}.json"] = json.dumps({"captions": captions}).encode()
    write_shard(root / "said" / "train-0000.tar", said)
    return root


@pytest.fixture
def section() -> Callable[..., ImagesSection]:
    """Make the settings of a run of 12 steps on both sources; `toy={…}` changes the first, others the run."""

    def make(*, toy: dict[str, Any] | None = None, **changes: Any) -> ImagesSection:
        sources = {
            "toy": {"source": "wds:{data}/toy?split=train", "per_batch": 6, "mix": 0.5, "hold_out": 8} | (toy or {}),
            "said": {"source": "wds:{data}/said?split=train", "per_batch": 2, "captions": True},
        }
        settings = {"sources": sources, "steps": 12, "warmup_steps": 2, "lr": 1e-3, "captions_against": 3}
        return ImagesSection.model_validate(settings | {"precision": "float32", "checkpoint_every": 5} | changes)

    return make


@pytest.fixture
def read(data_root: Path) -> Callable[..., Corpus]:
    def make(settings: ImagesSection, unseen: dict[str, dict[int, list[str]]] | None = None) -> Corpus:
        return read_corpus(settings.sources, data_root=str(data_root), resolution=32, unseen=unseen or {}, seed=0)

    return make
