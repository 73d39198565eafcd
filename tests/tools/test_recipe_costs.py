"""The cost in a recipe's header is the one that is counted now."""

from __future__ import annotations

import pytest

from ironclip.training.recipe import load_recipe
from tools import recipe_costs

QUICK = {"tecoa-b32-in-eps1", "fare-l14-in-eps2", "leaf-l14-k1", "apt-b32-eps1-16shot"}
"""Of each kind one: the others take the rest of a minute."""

RECIPES = [
    pytest.param(path, id=path.stem, marks=[] if path.stem in QUICK else pytest.mark.slow)
    for path in recipe_costs.recipes()
]


@pytest.mark.parametrize("path", RECIPES)
def test_a_header_holds_what_is_counted(path):
    content = path.read_text()
    assert content == recipe_costs.filled(content, recipe_costs.line(path)), "run: python -m tools.recipe_costs"


@pytest.mark.parametrize("path", recipe_costs.recipes(), ids=lambda path: path.stem)
def test_every_published_recipe_says_what_it_costs(path):
    costs = [line for line in path.read_text().splitlines() if line.startswith(recipe_costs.MARK)]
    assert len(costs) == 1


def test_a_typed_line_is_noticed(tmp_path):
    content = "# Title.\n# Hardware: one.\ntitle: a\n# Cost: not a header\n"
    filled = recipe_costs.filled(content.replace("# Cost: not a header\n", ""), "# Cost: 3 PFLOP")
    assert filled == "# Title.\n# Hardware: one.\n# Cost: 3 PFLOP\ntitle: a\n"
    assert recipe_costs.filled(filled.replace("3", "4"), "# Cost: 3 PFLOP") == filled


def test_comments_alone_are_written(tmp_path):
    path = next(path for path in recipe_costs.recipes() if path.stem == "tecoa-b32-in-eps1")
    bare = tmp_path / path.name
    bare.write_text("".join(line for line in path.open() if not line.startswith("#")))
    assert load_recipe(bare) == load_recipe(path)
