"""Recipes that come with IronCLIP and need no clone: `quickstart/tecoa`. Those of `recipes/` read data beside it."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parents[1] / "recipes"


def bundled_recipes() -> list[str]:
    """Return the names of the recipes that come with IronCLIP, such as `quickstart/tecoa`."""
    return sorted(path.relative_to(_FOLDER).with_suffix("").as_posix() for path in _FOLDER.rglob("*.yaml"))


def recipe_path(recipe: str | Path) -> Path:
    """Return where a recipe lies: a path as it is, unless no such file exists and a bundled recipe has this name.

    Args:
        recipe: Path of a file, or a name of `bundled_recipes()`.
    """
    path = Path(recipe)
    return _FOLDER / f"{path.as_posix()}.yaml" if not path.is_file() and path.as_posix() in bundled_recipes() else path
