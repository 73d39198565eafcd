"""The report as Markdown: the figures and their provenance, without pictures."""

from __future__ import annotations

from collections.abc import Sequence

from ironclip.evaluation.records import Session
from ironclip.report import calibration, prose
from ironclip.report.falls import EXPLAINED, falls
from ironclip.report.results import Cell, DatasetTable, Results
from ironclip.report.wording import bounds, count, duration, p_value, points, share


def render_markdown(results: Results, title: str) -> str:
    """Write the report; a function of the stored rows only."""
    blocks = [
        f"# {escaped(title)}",
        f"`{prose.caption(results)}`",
        " ".join(escaped(sentence) for sentence in prose.what_was_done(results)),
        f"**{escaped(prose.verdict(results))}** {prose.verdict_explained(results)}",
        "\n".join(f"- {escaped(sentence)}" for sentence in prose.findings(results)),
        "## Results",
        *(block for table in results.datasets for block in dataset_section(table, results)),
        "\n".join(f"- {escaped(note)}" for note in results.notes),
        "### How to read this",
        "\n".join(f"- **{term}**: {meaning}" for term, meaning in prose.reading(results)),
        *_falls(results),
        *_confidence(results),
        "## Cost",
        _costs(results),
        "## Reproduce",
        *_provenance(results),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def dataset_section(table: DatasetTable, results: Results) -> list[str]:
    """Write the figures of one data set, a block a paragraph."""
    head = ["", "clean", *(f"ε = {budget.eps}" for budget in table.budgets)]
    columns = [table.clean, *table.robust]
    rows = []
    for index, model in enumerate(results.models):
        cells = [column[index] for column in columns]
        rows.append([escaped(model.name), *(_share(cell) for cell in cells)])
        if any(cell and cell.versus_first for cell in cells):
            rows.append([f"against {escaped(results.models[0].name)}", *(_versus(cell) for cell in cells)])
        if any(cell and cell.per_class for cell in cells):
            rows.append(["by class", *(_per_class(cell) for cell in cells)])
    return [
        f"### {escaped(table.info.title)}",
        f"{prose.dataset_line(table)}. Percent, 95 % intervals.",
        grid(head, rows),
        "\n".join(f"- {escaped(note)}" for note in prose.dataset_notes(table, results)),
    ]


def _share(cell: Cell | None) -> str:
    if cell is None:
        return "not run"
    return f"{share(cell.share)} (partial)" if cell.missing else share(cell.share)


def _per_class(cell: Cell | None) -> str:
    return share(cell.per_class) if cell and cell.per_class else ""


def _versus(cell: Cell | None) -> str:
    if cell is None or cell.versus_first is None:
        return ""
    paired = cell.versus_first.paired
    text = f"{points(paired.difference)} {bounds(paired.low, paired.high)}, {p_value(cell.versus_first.p_holm)}"
    return f"**{text}**" if cell.versus_first.is_clear else text


def _falls(results: Results) -> list[str]:
    blocks = []
    for fall in falls(results):
        lines = [[escaped(results.models[model].name), *shares] for model, shares in fall.lines]
        blocks += [f"### {escaped(fall.title)}", grid(["", *fall.head], lines)]
    return ["## What each attack broke", EXPLAINED, *blocks] if blocks else []


def _confidence(results: Results) -> list[str]:
    blocks = []
    names = [model.name for model in results.models]
    for table in results.datasets:
        lines = calibration.confidence_lines(table)
        if lines:
            rows = [[f"{escaped(names[line.model])}, {line.label}", *line.cells] for line in lines]
            blocks += [f"### Confidence on {escaped(table.info.title)}", grid(calibration.HEAD, rows)]
        blocks.append("\n".join(f"- No confidence of {escaped(one)}" for one in calibration.missing(table, names)))
    blocks.append("\n".join(f"- **{term}**: {meaning}" for term, meaning in calibration.reading(results.datasets)))
    return ["## Confidence", *blocks] if any(blocks) else []


def _costs(results: Results) -> str:
    head = ["", "images attacked", "forward passes", "backward passes", "time", "near ties", "false claims", "invalid"]
    return grid(
        head,
        [
            [
                escaped(model.name),
                *map(count, (cost.n, cost.forwards, cost.backwards)),
                duration(cost.seconds),
                *map(count, (cost.n_near_tie, cost.n_false_claims, cost.n_invalid)),
            ]
            for model, cost in zip(results.models, results.costs, strict=True)
        ],
    )


def _provenance(results: Results) -> list[str]:
    blocks = []
    if results.suite:
        blocks.append(
            f"Suite {escaped(results.suite.name)}, version {escaped(results.suite.version)}, `{results.suite.sha256}`."
        )
    blocks.append(f"Attacks: {escaped('; '.join(prose.attack_settings(results)))}.")
    for model in results.models:
        lines = [
            f"**{escaped(model.name)}** from `{model.source}`, weights `{model.sha256}`, "
            f"seed {', '.join(map(str, model.seeds))}",
            *(_session(session) for session in model.sessions),
        ]
        blocks.append("\n".join(lines))
    head = ["data set", "fingerprint", "classes", "prompts", "images", "games"]
    rows = [
        [
            escaped(table.info.title),
            *(f"`{sha256[:16]}`" for sha256 in _data_hashes(table)),
            ", ".join(f"{budget.eps}: `{budget.threat_hash[:16]}`" for budget in table.budgets),
        ]
        for table in results.datasets
    ]
    return [*blocks, grid(head, rows)]


def _session(session: Session) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in session.versions.items())
    return (
        f"- `{session.command}` ({session.created}; {session.device}, tile {session.tile}, "
        f"row invariance {session.row_invariance:g}; {versions})"
    )


def _data_hashes(table: DatasetTable) -> tuple[str, ...]:
    record = table.record
    return record.dataset_fingerprint, record.class_list_sha256, record.prompt_set_sha256, record.sample_ids.sha256


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table; the first column to the left, figures to the right."""
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(words: str) -> str:
    """Keep names from being read as markup."""
    for sign in "\\|*_<>`":
        words = words.replace(sign, f"\\{sign}")
    return words.replace("](", "]\\(")
