"""Three colours to tell apart: the suite and the recipe that the commands are tried with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ironclip.data.classes import words_sha256

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}


def colour_suite(folder: Path, names: Sequence[str]) -> Path:
    """Write a suite over the colours with the given class names."""
    listing = {"source": "made up", "count": len(names), "sha256": words_sha256(names), "names": list(names)}
    (folder / "colour-names.yaml").write_text(yaml.safe_dump(listing))
    data = {
        "name": "colours",
        "title": "Colours",
        "source": "folder:{data}/colours?split=test",
        "classes": "colour-names.yaml",
        "templates": ["a photo of a {}."],
        "metrics": ["top1", "mean_per_class"],
    }
    path = folder / "colours.yaml"
    path.write_text(yaml.safe_dump({"name": "colours", "version": 1, "title": "Three colours", "data": [data]}))
    return path


def two_steps(model: Path) -> dict[str, Any]:
    """Return a recipe of two steps from a model's folder."""
    return {
        "title": "two steps",
        "method": {"name": "tecoa"},
        "model": f"local-dir:{model}",
        "data": {
            "train": "folder:{data}/colours?split=test",
            "templates": ["a photo of a {}."],
            "class_names": sorted(COLOURS),
            "hold_out": 12,
        },
        "threat": {"norm": "linf", "eps": "2/255"},
        "attack": {"name": "pgd_m", "steps": 1},
        "optimisation": {"lr": 0.001, "steps": 2, "batch_size": 8, "precision": "float32"},
        "validation": {"every": 1, "attack": {"name": "pgd", "steps": 2}},
    }
