"""Fill the tables of README and docs from stored results, so that no figure in them is ever typed.

    python tools/tables.py                       # make the tables again from docs/results
    python tools/tables.py --natural RUN ...     # first store the figures of these run folders, the reference first
    python tools/tables.py --quickstart FOLDER   # first store the figures of what `ironclip quickstart` left there
    python tools/tables.py --speed LINE.json     # first store what `python -m benchmarks.vision_speed` printed
    python tools/tables.py --attack-speed LINES ...   # likewise, of `python -m benchmarks.attack_speed`
    python tools/tables.py --training LINE.json ...   # likewise, of `python -m benchmarks.training_step`
    python tools/tables.py --tiny RUN            # first store what the pre-training of the bundled model came to

The accuracies in its card are those of docs/acceptance/tiny.json.

A test holds the pages to docs/results.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
END = "<!-- /table -->"
MISSING = "Not measured yet."


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


def collect_quickstart(folder: Path) -> dict[str, Any]:
    """Return the figures of a quickstart, and what its models were tuned on."""
    from ironclip.quickstart import ORIGINAL, PLAN

    tuned = [Path(recipe).stem for recipe in PLAN.recipes]
    records = [json.loads((folder / "train" / name / "run.json").read_text()) for name in tuned]
    return {
        "tuned_on": list(dict.fromkeys(record["data"]["source"] for record in records)),
        "entries": collect([folder / "eval" / name for name in (ORIGINAL, *tuned)]),
    }


def collect_tiny(run: Path) -> dict[str, Any]:
    """Return what a pre-training came to: its result, its data, its seed, and how long the images took."""
    record, result = (json.loads((run / name).read_text()) for name in ("run.json", "result.json"))
    lines = [json.loads(line) for line in (run / "images" / "log.jsonl").read_text().splitlines()]
    # A rate is the mean since its sitting began; sittings are told apart by a rate that begins anew.
    rates = [(line["step"], line["images_per_second"]) for line in lines if "images_per_second" in line]
    return {
        "weights_sha256": result["weights_sha256"],
        "seed": record["recipe"]["seed"],
        "images": record["data"],
        "steps": result["steps"],
        "images_per_step": result["images_per_step"],
        "images_per_second": sorted(rate for _, rate in rates)[len(rates) // 2],
        "language": result["language"],
        "targets": record["targets"],
        "validation": result["validation"],
        "versions": record["versions"],
    }


def natural(entries: Sequence[dict[str, Any]]) -> str:
    """Return robustness on natural images as Markdown."""
    return "\n".join([*_blocks(entries), f"{_games(entries)} {_made_from('natural')}"])


def quickstart(content: dict[str, Any]) -> str:
    """Return robustness on bundled images as Markdown."""
    sources = ", ".join(f"`{source}`" for source in content["tuned_on"])
    tuned = f"Tuned on {sources}, on none of the images of these tables."
    entries = content["entries"]
    return "\n".join([*_blocks(entries), f"{tuned} {_games(entries)} {_made_from('quickstart')}"])


def tiny_run(content: dict[str, Any]) -> str:
    """Return what was trained, on what, for how long, as Markdown."""
    seen = content["steps"] * content["images_per_step"]
    hours = seen / content["images_per_second"] / 3600
    images = ", ".join(f"{name} {count:,}" for name, count in content["images"].items())
    language = content["language"]
    return "\n".join(
        [
            f"- sha256 of the weights: `{content['weights_sha256']}`",
            f"- seed {content['seed']}; images: {images}",
            f"- text tower: {language['steps']:,} steps, cosine to the targets {language['class_cosine']:.3f} on class "
            f"names, {language['word_cosine']:.2f} on other words",
            f"- image tower: {content['steps']:,} steps, {seen / 1e6:.1f} million images, about {hours:.1f} hours "
            f"({content['images_per_second']:.0f} images/s)",
        ]
    )


def tiny(content: dict[str, Any]) -> str:
    """Return what the bundled model was measured at, a line a claim, as Markdown."""
    shown = [item for item in content["items"] if _ABOUT.search(item["command"])]
    rows = [f"| {item['line']} | {item['figure']} |" for item in shown]
    measured = f"Measured at commit {content['commit'][:12]} by `make accept NAME=tiny`."
    return "\n".join(["| what | figure |", "|---|---|", *rows, "", measured])


def _blocks(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of the tables: a block a data set, a line a model, a column a radius."""
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
    return lines


def _games(entries: Sequence[dict[str, Any]]) -> str:
    games = ", ".join(dict.fromkeys(entry["threat"].split(", ", 1)[1] for entry in entries))
    attacks = ", ".join(dict.fromkeys(entry["attack"] for entry in entries))
    suites = ", ".join(dict.fromkeys(str(entry["suite"]) for entry in entries))
    return (
        f"Percent right with 95 % intervals (Wilson); Linf, {games}; attack {attacks} (best iterate, random start), so "
        f"robust figures are upper bounds. Suite {suites}."
    )


def _made_from(table: str) -> str:
    return f"Made by `tools/tables.py` from the rows in `docs/results/{table}.json`."


def speed(line: dict[str, Any]) -> str:
    """Return the speed of the image tower as Markdown."""
    gflops = line["operations"] / 1e9
    rows = [
        ("stock open_clip, float32", line["stock_float32"], line["over_float32"]),
        ("stock open_clip, bfloat16 autocast", line["stock_autocast"], line["over_autocast"]),
        ("IronCLIP, bfloat16", line["fast"], 1.0),
    ]
    shape, peak = " x ".join(map(str, line["peak_shape"])), line["peak"] / 1e9
    return "\n".join(
        [
            f"{line['model']}, batch {line['batch']}, {line['threads']} threads of {line['processor']}, torch "
            f"{line['torch']}, median of {line['rounds']}:",
            "",
            "| forward and input gradient | seconds | times as long as ours |",
            "|---|---|---|",
            *(f"| {name} | {seconds:.2f} | {ratio:.2f} |" for name, seconds, ratio in rows),
            "",
            f"Counted operations: {gflops:.0f} GFLOP a batch, {gflops / line['fast']:.0f} GFLOP/s; the machine's best "
            f"bfloat16 product ({shape}) in the same run: {peak:.0f} GFLOP/s; share {100 * line['share']:.0f} %.",
        ]
    )


def attack_speed(lines: Sequence[dict[str, Any]]) -> str:
    """Return races of attacks as Markdown, a line a race."""
    first = lines[0]
    rows = []
    for line in lines:
        # Of a tuned model the folder alone: where it lies says nothing to others.
        model = line["model"] if ":" in line["model"] else Path(line["model"]).name
        passes = (f"{sum(pair):,}" for pair in zip(line["forwards"], line["backwards"], strict=True))
        cells = (
            f"{line['attack']}, {line['eps']}, {model}",
            line["peer"],
            f"{len(line['images'])} x {line['images'][0]}",
            " / ".join(f"{seconds:.1f}" for seconds in line["seconds"]),
            f"{line['ratio']:.2f}",
            f"{line['ideal']:.2f}",
            " / ".join(passes),
            " / ".join(f"{count:,}" for count in line["standing"]),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(
        [
            f"{first['threads']} threads of {first['processor']}, torch {first['torch']}; ours / theirs:",
            "",
            "| attack, eps, model | against | laps x images | seconds a lap | times as fast | ideal | passes | stand |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
        ]
    )


def training_speed(lines: Sequence[dict[str, Any]]) -> str:
    """Return the speed of training steps as Markdown: a line a method, baseline and class count."""
    machine = lines[0]
    steps = [step for line in lines for step in line["steps"]]
    rows = []
    for step in steps:
        runs = f"{step['rounds']} and {step['baseline_rounds']}"
        memory = f"{step['ours_memory'] / 1e9:.1f} of {step['theirs_memory'] / 1e9:.1f} GB"
        shares = f"{100 * step['ours_share']:.0f} % and {100 * step['theirs_share']:.0f} %"
        operations = f"{step['ours_operations'] / 1e12:.2f} and {step['theirs_operations'] / 1e12:.2f}"
        classes = "-" if step["method"] == "fare" else step["classes"]
        ours = f"{step['ours']:.2f} s, {step['ours_images_per_second']:.1f}/s"
        theirs = f"{step['theirs']:.1f} s, {step['theirs_images_per_second']:.2f}/s"
        rows.append(
            f"| {step['method']}, {step['baseline']} | {classes} | {ours} | {theirs} | {step['ratio']:.1f} "
            f"| {step['ideal']:.1f} | {memory} | {operations} | {shares} | {runs} |"
        )
    far = [
        f"{line['steps'][0]['method']} with {line['extrapolated']['classes']:,} classes would take "
        f"{line['extrapolated']['theirs']:.0f} s as published, {line['extrapolated']['ratio']:.0f} times as long as "
        "ours: a line through the class counts above, extrapolated, not measured."
        for line in lines
        if "extrapolated" in line
    ]
    return "\n".join(
        [
            f"{steps[0]['model']}, batch {steps[0]['batch']}, {machine['threads']} threads of {machine['processor']}, "
            f"torch {machine['torch']}:",
            "",
            "| step, against | classes | ours | theirs | ratio | ideal | peak memory | TFLOP counted, ours and theirs "
            "| share of own peak | runs |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *rows,
            *(["", *far] if far else []),
        ]
    )


def _share(interval: dict[str, float]) -> str:
    return f"{100 * interval['estimate']:.1f} [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


CARD = ROOT / "src" / "ironclip" / "models" / "tiny" / "README.md"
_ABOUT = re.compile(r"--only (zero_shot|fragility|retrieval)")
TABLES: dict[str, tuple[Path, Callable[[Any], str]]] = {
    "tiny": (CARD, tiny),
    "tiny-run": (CARD, tiny_run),
    "natural": (ROOT / "README.md", natural),
    "quickstart": (ROOT / "README.md", quickstart),
    "speed": (ROOT / "docs" / "performance.md", speed),
    "training_speed": (ROOT / "docs" / "performance.md", training_speed),
    "attack_speed": (ROOT / "docs" / "performance.md", attack_speed),
}


def _json_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def _json(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def stored(table: str) -> Path:
    """Return the file that a table is made from."""
    return ROOT / "docs" / ("acceptance" if table == "tiny" else "results") / f"{table}.json"


def text(table: str) -> str:
    """Return a table as it is to stand in its page."""
    _, render = TABLES[table]
    return render(json.loads(stored(table).read_text())) if stored(table).is_file() else MISSING


def fill(page: str, table: str, content: str) -> str:
    """Return a page with the table between its marks."""
    begin = f"<!-- table:{table} -->"
    before, mark, rest = page.partition(begin)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise SystemExit(f"the page has no {begin} … {END}")
    return f"{before}{begin}\n{content}\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--natural", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--quickstart", type=Path, metavar="FOLDER")
    parser.add_argument("--speed", type=Path, metavar="LINE.json")
    parser.add_argument("--attack-speed", nargs="+", type=Path, metavar="LINES")
    parser.add_argument("--training", nargs="+", type=Path, metavar="LINE.json")
    parser.add_argument("--tiny", type=Path, metavar="RUN")
    options = parser.parse_args(arguments)
    RESULTS.mkdir(parents=True, exist_ok=True)
    if options.natural:
        stored("natural").write_text(_json(collect(options.natural)))
    if options.quickstart:
        stored("quickstart").write_text(_json(collect_quickstart(options.quickstart)))
    if options.speed:
        stored("speed").write_text(_json(json.loads(options.speed.read_text())))
    if options.attack_speed:
        stored("attack_speed").write_text(_json([line for path in options.attack_speed for line in _json_lines(path)]))
    if options.training:
        stored("training_speed").write_text(_json([json.loads(path.read_text()) for path in options.training]))
    if options.tiny:
        stored("tiny-run").write_text(_json(collect_tiny(options.tiny)))
    for table, (page, _) in TABLES.items():
        page.write_text(fill(page.read_text(), table, text(table)))


if __name__ == "__main__":
    main()
