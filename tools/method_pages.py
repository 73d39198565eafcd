"""Fill the generated parts of docs/methods and docs/defects.md: what a registry, a file or a stored result knows.

    python -m tools.method_pages                     # make them again from what is there
    python -m tools.method_pages --natural FOLDER ...    # first store the figures of the comparison's runs

Idea, formula and the differences between paper and code are written by hand. Tests hold the pages to the registry.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from tools.tables import MISSING, collect

from ironclip.methods.base import METHODS, Method
from tools import defects

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "methods"
OVERVIEW = PAGES / "README.md"
RESULTS = ROOT / "docs" / "results" / "methods.json"
END = "<!-- /generated -->"


def default(name: str) -> Method:
    """Return the method with its defaults."""
    return METHODS.create(name)


def page(name: str) -> Path:
    """Return the page of a method."""
    return PAGES / f"{name}.md"


def recipes(name: str) -> list[Path]:
    """Return the published settings of a method, and where it is part of the comparison that one too."""
    folder = ROOT / "recipes"
    return sorted([*(folder / name).glob("*.yaml"), *(folder / "natural-methods").glob(f"{name}.yaml")])


def reads(method: Method) -> str:
    """Say which passes the loss reads."""
    return ", ".join(sorted(one.value for one in method.needs))


def adversary(method: Method) -> str:
    """Say what is attacked while it trains."""
    views = {one.value.partition(".")[2] for one in method.needs}
    kinds = [kind for kind, marks in (("image", ("adv", "adv_patches")), ("text", ("text_adv",))) if views & {*marks}]
    return " and ".join(kinds) or "none"


def settings(name: str) -> str:
    """Return what a method trains and reads, its settings with defaults, and its recipes, as Markdown."""
    method = default(name)
    facts = [
        f"- trains: {method.trains.value}",
        f"- adversary: {adversary(method)}",
        f"- needs class names: {'yes' if method.reads_classes else 'no'}",
        f"- passes that the loss reads: {reads(method)}",
    ]
    explained = attributes(type(method))
    rows = [
        f"| `{field.name}` | `{_yaml(getattr(method, field.name))}` | {explained.get(field.name, '')} |"
        for field in dataclasses.fields(method)  # type: ignore[arg-type]  # every method is a dataclass
    ]
    table = ["", "| setting | default | |", "|---|---|---|", *rows] if rows else ["- settings: none"]
    found = [f"- `{path.relative_to(ROOT)}`: {yaml.safe_load(path.read_text())['title']}" for path in recipes(name)]
    return "\n".join([*facts, *table, *(["", "Recipes:", "", *found] if found else [])])


def attributes(cls: type) -> Mapping[str, str]:
    """Return what a class says of its attributes under `Attributes:`, one line each; bases first."""
    found: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        _, _, block = (inspect.getdoc(one) or "").partition("Attributes:\n")
        for entry in re.split(r"\n(?= {4}\w)", "\n" + block.partition("\n\n")[0]):
            key, colon, text = entry.strip().partition(":")
            if colon and key.isidentifier():
                found[key] = " ".join(text.split())
    return found


def _yaml(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).partition("\n")[0].replace("'", '"')


def overview() -> str:
    """Return the comparison of all methods as Markdown."""
    lines = [
        "| method | in one line | trains | adversary | class names | teacher | recipes |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in METHODS:
        method = default(name)
        line = (sys.modules[type(method).__module__].__doc__ or "").partition("\n")[0]
        says = line.partition(": ")[2] or line
        teacher = any(one.value.startswith("teacher") for one in method.needs)
        cells = [
            f"[`{name}`]({name}.md)",
            says[:1].upper() + says[1:],
            method.trains.value,
            adversary(method),
            "yes" if method.reads_classes else "no",
            "yes" if teacher else "no",
            str(len(recipes(name))),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def measured(name: str, entries: Sequence[dict[str, Any]]) -> str:
    """Return what a method came to in the comparison, as Markdown; mean over training seeds, with their spread."""
    own: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for entry in entries:
        if entry["method"] in (name, "original"):
            own[entry["title"], entry["threat"], entry["attack"], entry["method"]].append(entry)
    if not any(key[-1] == name for key in own):
        return MISSING
    columns = ("data", "game", "attack", "model", "seeds", "images", "clean", "robust")
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for key, runs in own.items():
        shares = (" ± ".join(_mean_and_spread([run[kind] for run in runs])) for kind in ("clean", "robust"))
        cells = (*key, str(len(runs)), f"{runs[0]['n']:,}", *shares)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(
        [
            *lines,
            "",
            "Percent right, mean over training seeds ± their standard deviation. `recipes/natural-methods` has the "
            "setting, `docs/acceptance/methods.json` which differences are more than chance. Made by "
            "`tools/method_pages.py` from the rows in `docs/results/methods.json`.",
        ]
    )


def _mean_and_spread(shares: Sequence[float]) -> list[str]:
    spread = [f"{100 * statistics.stdev(shares):.1f}"] if len(shares) > 1 else []
    return [f"{100 * statistics.fmean(shares):.1f}", *spread]


def collect_natural(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the figures of the comparison's evaluations, an entry a method, seed, data set and adversary.

    Args:
        folders: Work folders of acceptance; each holds METHOD/seed-N or METHOD/seed-N-pair, folders of `ironclip eval`.
    """
    entries = []
    for run in sorted(run for folder in folders for run in folder.glob("*/seed-*")):
        for entry in collect([run]):
            kept = {
                key: entry[key] for key in ("title", "threat", "attack", "n", "n_total", "coverage", "model_sha256")
            }
            shares = {kind: entry[kind]["estimate"] for kind in ("clean", "robust")}
            entries.append({"method": run.parent.name, "seed": int(run.name.split("-")[1])} | kept | shares)
    return entries


def stored() -> list[dict[str, Any]]:
    """Return the stored figures of the comparison."""
    found: list[dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []
    return found


def fill(content: str, block: str, text: str) -> str:
    """Return a page with a generated block between its marks.

    Raises:
        SystemExit: The page has no such marks.
    """
    begin = f"<!-- generated:{block} -->"
    before, mark, rest = content.partition(begin)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise SystemExit(f"the page has no {begin} … {END}")
    return f"{before}{begin}\n{text}\n{END}{after}"


def filled() -> dict[Path, str]:
    """Return each page with generated parts as it is to be."""
    entries = stored()
    pages = {OVERVIEW: fill(OVERVIEW.read_text(encoding="utf-8"), "methods", overview())}
    for name in METHODS:
        content = fill(page(name).read_text(encoding="utf-8"), "settings", settings(name))
        pages[page(name)] = fill(content, "measured", measured(name, entries))
    pages[defects.PAGE] = fill(defects.PAGE.read_text(encoding="utf-8"), "defects", defects.table())
    return pages


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--natural", nargs="+", type=Path, metavar="FOLDER")
    options = parser.parse_args(arguments)
    if options.natural:
        RESULTS.write_text(json.dumps(collect_natural(options.natural), indent=1) + "\n", encoding="utf-8")
    for path, content in filled().items():
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
