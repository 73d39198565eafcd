"""A small training run for the items of `scale`: a few steps of the quickstart's recipe, made once an item."""

from __future__ import annotations

from pathlib import Path

from acceptance.command_line import ironclip, must

RECIPE = "quickstart/tecoa"
IMAGES = 256


def small_run(folder: Path) -> Path:
    """Tune tiny for two steps, or find that it was done, and return the run folder."""
    must(ironclip("train", RECIPE, "--out", folder, "--limit", IMAGES))
    return folder
