"""Curves and scatter plots as inline SVG: text stays text, colours follow the page (light, dark, print).

matplotlib draws with marker colours that are then replaced by CSS variables and `currentColor`, so one drawing serves
all colour schemes. A model is told by colour, marker and dash, so colour alone carries nothing.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from ironclip.evaluation.calibration import Bins
from ironclip.evaluation.intervals import wilson
from ironclip.report.results import Cell, DatasetTable

# Stand-ins that occur nowhere else in a drawing; the page defines --model-0 to --model-7, --ink and --grid.
_MODEL_INKS = tuple(f"#0123{index:02d}" for index in range(8))
_INK, _GRID = "#012390", "#012391"
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p")
_DASHES = ("solid", (0, (5, 1.5)), (0, (3, 1.2, 1, 1.2)), (0, (1.5, 1.2)))
_WIDTH, _HEIGHT = 3.7, 2.8
_PATH: dict[str, Any] = {"color": _INK, "alpha": 0.5, "linewidth": 1.2, "zorder": 2}


def robustness_curve(table: DatasetTable, norm: str, *, prefix: str) -> Markup:
    """Draw robust accuracy against the radius, a line a model with its interval as a band; radius 0 is clean.

    Args:
        table: One data set.
        norm: The budgets to draw: `linf` or `l2`.
        prefix: Makes the ids of this drawing unique in the page.
    """
    rows = [(budget, cells) for budget, cells in zip(table.budgets, table.robust, strict=True) if budget.norm == norm]
    with _canvas(prefix) as (axes, drawing):
        for model in range(len(table.clean)):
            cells = [(0.0, table.clean[model])] + [(float(budget.radius), cells[model]) for budget, cells in rows]
            _band(axes, [(radius, cell) for radius, cell in cells if cell], model)
        _chance(axes, table.chance)
        axes.set_xticks(
            [0.0, *(float(budget.radius) for budget, _ in rows)], ["0 (clean)", *(budget.eps for budget, _ in rows)]
        )
        axes.set_xlim(left=0)
        _percent_axis(axes.yaxis, _ceiling([*table.clean, *(cell for _, row in rows for cell in row)]))
        axes.set_xlabel("perturbation budget ε")
        axes.set_ylabel("images still right, %")
    return drawing.markup


def trade_off(table: DatasetTable, budget: int, *, prefix: str, paths: Iterable[Sequence[int]] = ()) -> Markup:
    """Draw robust against clean accuracy at one budget, a point a model with both intervals.

    Args:
        table: One data set.
        budget: Index of the budget.
        paths: Models that a line joins, in this order: weights between one original and one robust model.
        prefix: Makes the ids of this drawing unique in the page.
    """
    with _canvas(prefix) as (axes, drawing):
        ceiling = _ceiling(table.clean)
        axes.plot([0, ceiling], [0, ceiling], color=_GRID, linewidth=1, zorder=1)
        axes.text(
            0.52 * ceiling, 0.55 * ceiling, "nothing lost under attack", color=_INK, alpha=0.6, fontsize=8, rotation=45,
            rotation_mode="anchor", transform_rotates_text=True, ha="center",
        )  # fmt: skip
        points = list(zip(table.clean, table.robust[budget], strict=True))
        for path in paths:
            joined = [
                (clean.share, robust.share) for clean, robust in (points[model] for model in path) if clean and robust
            ]
            if joined:
                axes.plot(*([100 * share.estimate for share in axis] for axis in zip(*joined, strict=True)), **_PATH)
        for model, (clean, robust) in enumerate(points):
            if clean and robust:
                _cross(axes, clean, robust, model)
        _chance(axes, table.chance)
        _percent_axis(axes.xaxis, ceiling)
        _percent_axis(axes.yaxis, ceiling)
        axes.set_xlabel("clean images right, %")
        axes.set_ylabel(f"right under attack at ε = {table.budgets[budget].eps}, %")
    return drawing.markup


def reliability_diagram(clean: Bins, attacked: Bins, model: int, *, prefix: str) -> Markup:
    """Draw the share right against the confidence, bin by bin with intervals, for clean and attacked images.

    Empty bins have no point. Bars at the foot say how many images fell into a bin: clean pale, attacked solid.

    Args:
        clean: Of the clean images (open marks, dotted line).
        attacked: Of the attacked images (filled marks), cut as the clean ones.
        model: Index, for the colour.
        prefix: Makes the ids of this drawing unique in the page.
    """
    with _canvas(prefix) as (axes, drawing):
        axes.plot([0, 100], [0, 100], color=_GRID, linewidth=1, zorder=1)
        for bins, is_attacked in ((clean, False), (attacked, True)):
            _reliability(axes, bins, model, is_attacked)
        for axis in (axes.xaxis, axes.yaxis):
            _percent_axis(axis, 100)
        axes.set_xlabel("confidence, %")
        axes.set_ylabel("images right, %")
    return drawing.markup


def training_curve(
    lines: Sequence[Sequence[tuple[float, float]]], *, prefix: str, label: str, in_percent: bool = False
) -> Markup:
    """Draw figures of a training run against its steps, a line each, in the inks and dashes of `swatch`.

    Args:
        lines: Points (step, value) of each line, at least one.
        prefix: Makes the ids of this drawing unique in the page.
        label: Of the vertical axis.
        in_percent: Values are shares in [0, 1] and drawn in percent.
    """
    factor = 100 if in_percent else 1
    with _canvas(prefix) as (axes, drawing):
        for index, points in enumerate(lines):
            steps, values = zip(*points, strict=True)
            marks = max(1, len(points) // 8)
            axes.plot(steps, [factor * value for value in values], markevery=marks, **_style(index))
        axes.set_xlabel("step")
        axes.set_ylabel(label)
    return drawing.markup


def swatch(model: int, *, prefix: str) -> Markup:
    """Draw the line and marker of a model for a legend, in the same colours as the figures."""
    with _canvas(prefix, width=0.42, height=0.18, bare=True) as (axes, drawing):
        axes.plot([0, 0.5, 1], [0.5, 0.5, 0.5], markevery=[1], **_style(model))
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
    return drawing.markup


def _percent_axis(axis: Axis, ceiling: int) -> None:
    axis.set_ticks(range(0, ceiling + 1, 20 if ceiling > 40 else 10))
    axis.set_view_interval(0, ceiling, ignore=True)


def _ceiling(cells: Iterable[Cell | None]) -> int:
    """Return the end of a percent axis that starts at 0: the next multiple of 20 above all intervals."""
    highest = max((cell.share.high for cell in cells if cell), default=1.0)
    return min(100, 20 * math.ceil(5 * highest))


def _band(axes: Axes, cells: list[tuple[float, Cell]], model: int) -> None:
    radii = [radius for radius, _ in cells]
    shares = [cell.share for _, cell in cells]
    axes.fill_between(
        radii,
        [100 * share.low for share in shares],
        [100 * share.high for share in shares],
        color=_MODEL_INKS[model % len(_MODEL_INKS)],
        alpha=0.18,
        linewidth=0,
        zorder=2,
    )
    axes.plot(radii, [100 * share.estimate for share in shares], zorder=3, **_style(model))


def _cross(axes: Axes, clean: Cell, robust: Cell, model: int) -> None:
    x, y = clean.share, robust.share
    axes.errorbar(
        [100 * x.estimate],
        [100 * y.estimate],
        xerr=[[100 * (x.estimate - x.low)], [100 * (x.high - x.estimate)]],
        yerr=[[100 * (y.estimate - y.low)], [100 * (y.high - y.estimate)]],
        zorder=3,
        capsize=0,
        elinewidth=1.2,
        **_style(model),
    )


def _reliability(axes: Axes, bins: Bins, model: int, is_attacked: bool) -> None:
    style = _style(model)
    if not is_attacked:
        style |= {"linestyle": (0, (1, 2)), "markerfacecolor": "none"}
    points = [
        (100 * mean, wilson(hits, count))
        for count, hits, mean in zip(bins.counts, bins.hits, bins.confidence, strict=True)
        if mean is not None
    ]
    shares = [share for _, share in points]
    axes.errorbar(
        [confidence for confidence, _ in points],
        [100 * share.estimate for share in shares],
        yerr=[
            [100 * (share.estimate - share.low) for share in shares],
            [100 * (share.high - share.estimate) for share in shares],
        ],
        elinewidth=0.8,
        capsize=0,
        zorder=4 if is_attacked else 3,
        **style,
    )
    width = 100 / len(bins.counts)
    axes.bar(
        [(index + (0.7 if is_attacked else 0.3)) * width for index in range(len(bins.counts))],
        [15 * count / sum(bins.counts) for count in bins.counts],
        width=0.38 * width,
        color=style["color"],
        alpha=0.7 if is_attacked else 0.3,
        zorder=2,
    )


def _chance(axes: Axes, chance: float) -> None:
    axes.axhline(100 * chance, color=_INK, alpha=0.55, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
    axes.annotate(
        "guess", (1, 100 * chance), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
        ha="left", va="center", fontsize=8, color=_INK, alpha=0.75,
    )  # fmt: skip


def _style(model: int) -> dict[str, Any]:
    return {
        "color": _MODEL_INKS[model % len(_MODEL_INKS)],
        "marker": _MARKERS[model % len(_MARKERS)],
        "linestyle": _DASHES[model % len(_DASHES)],
        "markersize": 5.5,
        "linewidth": 1.8,
    }


class _Drawing:
    """Holds the finished drawing once its context is left."""

    markup = Markup()


@contextmanager
def _canvas(
    prefix: str, *, width: float = _WIDTH, height: float = _HEIGHT, bare: bool = False
) -> Iterator[tuple[Axes, _Drawing]]:
    """Give axes to draw on; on leaving, turn them into inline SVG. No global matplotlib state survives."""
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": prefix,
        "font.family": "sans-serif",
        "font.size": 9,
        "text.color": _INK,
        "axes.edgecolor": _GRID,
        "axes.labelcolor": _INK,
        "xtick.color": _GRID,
        "xtick.labelcolor": _INK,
        "ytick.color": _GRID,
        "ytick.labelcolor": _INK,
        "text.parse_math": False,
    }
    drawing = _Drawing()
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width, height), layout=None if bare else "constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0, 0, 1, 1)) if bare else figure.add_subplot()
        axes.patch.set_visible(False)
        axes.spines[["top", "right"]].set_visible(False)
        if bare:
            axes.set_axis_off()
        else:
            axes.grid(visible=True, axis="y", color=_GRID, linewidth=0.6, zorder=0)
            axes.tick_params(length=0)
        yield axes, drawing
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    drawing.markup = _inline(buffer.getvalue(), prefix)


def _inline(svg: str, prefix: str) -> Markup:
    """Make a file into an element: no prolog, no addresses, unique ids, colours by variable, size by the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)  # a style would reach the whole page
    svg = re.sub(r'\s(?:xmlns(?::\w+)?|version)="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    for index, ink in enumerate(_MODEL_INKS):
        svg = svg.replace(ink, f"var(--model-{index})")
    svg = svg.replace(_INK, "var(--ink)").replace(_GRID, "var(--grid)")
    return Markup(re.sub(r"\s*\n\s*", "\n", svg).strip())
