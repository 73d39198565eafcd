"""Fill the table of the README from stored rows: `python tools/natural_table.py [RUN ...]`.

With run folders, their figures are first written to docs/results/natural.json, from which the table is made; a test
holds the README to that file, so no figure in it is ever typed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "docs" / "results" / "natural.json"
README = ROOT / "README.md"
BEGIN, END = "<!-- table:natural -->", "<!-- /table -->"


def collect(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the figures of run folders, one entry a model, data set and radius."""
    from ironclip.evaluation.store import RunStore

    entries = []
    for run in runs:
        store = RunStore.open(run)
        for unit in store.units():
            record, row = store.record(unit), store.aggregate(unit)
            entries.append(
                {
                    "model": store.run.model.name,
                    "model_sha256": store.run.model.sha256,
                    "dataset": record.dataset,
                    "title": store.run.datasets[record.dataset].title,
                    "classes": len(store.run.datasets[record.dataset].class_names),
                    "eps": record.threat.eps,
                    "threat": record.threat.caption,
                    "attack": record.attack.label,
                    "seed": record.seed,
                    "n": row.totals.n,
                    "n_total": row.n_total,
                    "coverage": row.coverage,
                    "clean": asdict(row.clean_accuracy),
                    "robust": asdict(row.robust_accuracy),
                    "robust_mean_per_class": row.robust_mean_per_class and asdict(row.robust_mean_per_class),
                    "suite": store.run.suite and f"{store.run.suite.name} v{store.run.suite.version}",
                    "versions": store.run.sessions[-1].versions,
                }
            )
    return entries


def render(entries: Sequence[dict[str, Any]]) -> str:
    """Return the table as Markdown: a block a data set, a line a model, a column a radius."""
    if not entries:
        return "Not measured yet."
    lines = []
    for dataset in dict.fromkeys(entry["dataset"] for entry in entries):
        here = [entry for entry in entries if entry["dataset"] == dataset]
        radii = list(dict.fromkeys(entry["eps"] for entry in here))
        first = here[0]
        lines += [
            f"**{first['title']}** ({first['n']:,} of {first['n_total']:,} test images, {first['classes']} classes, "
            f"guessing gives {100 / first['classes']:.1f} %)",
            "",
            f"| model | clean | {' | '.join(radii)} |",
            f"|---|---|{'---|' * len(radii)}",
        ]
        for model in dict.fromkeys(entry["model"] for entry in here):
            own = {entry["eps"]: entry for entry in here if entry["model"] == model}
            cells = [_share(own[eps]["robust"]) if eps in own else "" for eps in radii]
            lines.append(f"| {model} | {_share(next(iter(own.values()))['clean'])} | {' | '.join(cells)} |")
        lines.append("")
    games = ", ".join(dict.fromkeys(entry["threat"].split(", ", 1)[1] for entry in entries))
    attacks = ", ".join(dict.fromkeys(entry["attack"] for entry in entries))
    suites = ", ".join(dict.fromkeys(str(entry["suite"]) for entry in entries))
    lines.append(
        f"Percent right with 95 % intervals (Wilson); Linf, {games}; attack {attacks} (best iterate, random start), so "
        f"robust figures are upper bounds. Suite {suites}. Made by `tools/natural_table.py` from the rows in "
        "`docs/results/natural.json`."
    )
    return "\n".join(lines)


def fill(readme: str, table: str) -> str:
    """Return the README with the table between its marks."""
    before, mark, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise SystemExit(f"the README has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def _share(interval: dict[str, float]) -> str:
    return f"{100 * interval['estimate']:.1f} [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="*", type=Path, help="run folders, the reference first")
    runs = parser.parse_args(None if arguments is None else list(arguments)).runs
    if runs:
        STORED.parent.mkdir(parents=True, exist_ok=True)
        STORED.write_text(json.dumps(collect(runs), indent=1, ensure_ascii=False) + "\n")
    entries = json.loads(STORED.read_text()) if STORED.is_file() else []
    README.write_text(fill(README.read_text(), render(entries)))


if __name__ == "__main__":
    main()
