from __future__ import annotations

from pathlib import Path

import pytest

from ironclip.errors import ConfigError
from ironclip.training.bundled_recipes import bundled_recipes, recipe_path
from ironclip.training.recipe import load_recipe


def test_names() -> None:
    assert {"cifar10/tecoa", "quickstart/fare", "quickstart/tecoa"} <= set(bundled_recipes())


@pytest.mark.parametrize("name", bundled_recipes())
def test_every_recipe_is_one_and_needs_no_clone(name: str) -> None:
    path = recipe_path(name)
    recipe = load_recipe(path)
    assert recipe.title
    assert ".." not in path.read_text().split("\nmodel:")[1], "a path beside a clone"
    first = path.read_text().splitlines()
    assert first[0].startswith("# ")
    assert any("Source of the method:" in line for line in first)
    assert any(line.startswith("# Expected:") for line in first)


def test_a_file_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = recipe_path("quickstart/tecoa")
    assert shipped.is_absolute()
    own = Path("quickstart") / "tecoa"
    own.parent.mkdir()
    assert recipe_path(own) == shipped  # a folder of this name is in nobody's way
    own.write_text("")
    assert recipe_path(own) == own


def test_an_unknown_name_is_a_path_that_is_not_there() -> None:
    assert recipe_path("quickstart/tecao") == Path("quickstart/tecao")
    with pytest.raises(ConfigError, match="there is no recipe quickstart/tecao"):
        load_recipe(recipe_path("quickstart/tecao"))
