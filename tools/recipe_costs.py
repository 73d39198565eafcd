"""Write what each published recipe costs into its header: a comment line, counted and never typed.

    python -m tools.recipe_costs

The line is for one H200 at a stated peak (`PEAK`), on paper: `ironclip validate RECIPE --cost` says what it rests on,
and takes another peak, more devices or other data. A test holds the headers to the count.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from ironclip.training.cost import Cost, CostSettings, cost_of
from ironclip.training.recipe import load_recipe

ROOT = Path(__file__).resolve().parent.parent
OTHERS = {"natural", "natural-methods", "pretrain", "vlm"}
"""Folders of our own settings: of the bundled model, minutes on a few cores, or of `ironclip pretrain`."""

PEAK = 400e12
"""Operations a second that large bfloat16 products are taken to reach on one H200: 40 % of its data sheet's 989e12, on
the careful side. Not measured."""

BASES = {"run": "ViT-B-32"}
"""Architecture of the runs that recipes begin with: each is a run of recipes/tecoa with a ViT-B/32."""

MARK = "# Cost: "
COMMAND = '"ironclip validate" with --cost says more.'


def recipes() -> list[Path]:
    """List the recipes of published settings."""
    return sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name not in OTHERS)


def line(path: Path) -> str:
    """Return the comment line of a recipe, without its line break."""
    return MARK + sentence(cost(path))


def cost(path: Path) -> Cost:
    """Count what a recipe costs on one H200."""
    recipe = load_recipe(path)
    kind = recipe.model.partition(":")[0]
    return cost_of(recipe, CostSettings(peak=PEAK, architecture=BASES.get(kind)))


def sentence(cost: Cost) -> str:
    """Say it in one line; two figures, since no more of them can be trusted."""
    hours = cost.seconds / 3600
    time = f"{_rounded(hours)} h" if hours >= 1 else f"{_rounded(60 * hours)} min"
    return (
        f"{_rounded(cost.operations / 1e15)} PFLOP counted; on paper {time} and {_rounded(cost.peak_memory / 1e9)} GB "
        f"on one H200 taken at {PEAK / 1e12:.0f} TFLOP/s. {COMMAND}"
    )


def filled(content: str, new: str) -> str:
    """Put the line into a recipe's header, in the place of the one that is there, or else at its end."""
    if re.search(rf"^{MARK}.*$", content, re.MULTILINE):
        return re.sub(rf"^{MARK}.*$", lambda _: new, content, count=1, flags=re.MULTILINE)
    lines = content.splitlines(keepends=True)
    header = next(number for number, text in enumerate(lines) if not text.startswith("#"))
    return "".join([*lines[:header], new + "\n", *lines[header:]])


def _rounded(value: float) -> str:
    """Write a number with two figures, and digits instead of an exponent."""
    return f"{float(f'{value:.2g}'):,.10g}"


def main() -> None:
    logging.getLogger("ironclip").setLevel(logging.ERROR)
    for path in recipes():
        content = path.read_text(encoding="utf-8")
        path.write_text(filled(content, line(path)), encoding="utf-8")


if __name__ == "__main__":
    main()
