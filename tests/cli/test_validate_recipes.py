"""Every recipe in the repository passes `ironclip validate`."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPES = sorted([*(ROOT / "recipes").rglob("*.yaml"), *(ROOT / "src" / "ironclip" / "recipes").rglob("*.yaml")])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_passes(path, ironclip):
    done = ironclip("validate", path)
    assert done.code == 0, done.err
    assert "is a recipe" in done.out


def test_there_are_recipes_of_every_folder():
    assert {"tecoa", "fare", "natural", "natural-methods", "pretrain"} <= {path.parent.name for path in RECIPES}
