"""The report as one self-contained HTML page: no script, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ironclip.files import write_atomically
from ironclip.report import calibration, prose, wording
from ironclip.report.falls import EXPLAINED, falls
from ironclip.report.figures import reliability_diagram, robustness_curve, swatch, trade_off
from ironclip.report.gallery import gallery
from ironclip.report.markdown import render_markdown
from ironclip.report.results import DatasetTable, Results
from ironclip.report.tables import load_results
from ironclip.report.weight_paths import weight_paths


@dataclass(frozen=True)
class _Plot:
    """A drawing with what stands above it."""

    title: str
    svg: Markup


def build_report(runs: Sequence[Path], out: Path, *, title: str | None = None) -> Path:
    """Write `report.html` and `report.md` from stored rows; no model and no data set is opened.

    Args:
        runs: Run folders; the first holds the model that the others are compared with.
        out: Folder of the report, made if absent.
        title: Heading; by default it names the models.

    Returns:
        Path of the page.

    Raises:
        ConfigError: The runs may not share a table (other suite, game, images or attacks); says why.
        DataError: A folder is no run, or holds no results.
    """
    results = load_results(runs)
    heading = title or prose.default_title(results)
    write_atomically(out / "report.md", render_markdown(results, heading).encode())
    return write_atomically(out / "report.html", render_page(results, heading).encode())


def render_page(results: Results, title: str) -> str:
    """Return the page; a function of the stored rows only."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ironclip.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_keep_percent_signs,
    )
    environment.globals |= {"prose": prose, "wording": wording, "calibration": calibration, "legend": _legend_maker()}
    paths = weight_paths(results.models)
    galleries = [found for table in results.datasets if (found := gallery(table, results.models))]
    return environment.get_template("report.html.j2").render(
        title=title,
        results=results,
        galleries=galleries,
        falls=falls(results),
        falls_explained=EXPLAINED,
        curves=[plot for index, table in enumerate(results.datasets) for plot in _curves(index, table)],
        trade_offs=[
            _Plot(
                f"{table.info.title}, ε = {table.budgets[table.reference].eps}",
                trade_off(table, table.reference, prefix=f"trade-{index}", paths=paths),
            )
            for index, table in enumerate(results.datasets)
        ],
        joined=bool(paths),
        reliability=[
            plot for index, table in enumerate(results.datasets) for plot in _reliability(index, table, results)
        ],
    )


def _keep_percent_signs(value: Any) -> Any:
    """Never let a line end between a number and its percent sign."""
    return value.replace(" %", "\N{NO-BREAK SPACE}%") if isinstance(value, str) else value


def _curves(index: int, table: DatasetTable) -> list[_Plot]:
    norms = dict.fromkeys(budget.norm for budget in table.budgets)
    return [
        _Plot(
            f"{table.info.title}, {norm}" if len(norms) > 1 else table.info.title,
            robustness_curve(table, norm, prefix=f"curve-{index}-{norm}"),
        )
        for norm in norms
    ]


def _reliability(index: int, table: DatasetTable, results: Results) -> list[_Plot]:
    plots = []
    for model, info in enumerate(results.models):
        found = calibration.reference(table, model)
        if found:
            title = f"{table.info.title}, {info.name}, clean and ε = {table.budgets[table.reference].eps}"
            drawing = reliability_diagram(
                found.clean.bins, found.adv.bins, model, prefix=f"reliability-{index}-{model}"
            )
            plots.append(_Plot(title, drawing))
    return plots


def _legend_maker() -> Any:
    """Return the template's `legend(model)`: a fresh drawing each time, since ids may occur once in a page."""
    made = 0

    def legend(model: int) -> Markup:
        nonlocal made
        made += 1
        return swatch(model, prefix=f"legend-{made}")

    return legend
