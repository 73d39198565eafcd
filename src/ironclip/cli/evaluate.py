"""`ironclip eval`: measure a model under attack on the data sets of a suite."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ironclip.cli.options import (
    DataRoot,
    Device,
    Json,
    Limit,
    Out,
    Strict,
    as_file_name,
    read_attack,
    read_shard,
)
from ironclip.cli.output import Display, say, say_json, say_table, tell
from ironclip.errors import ConfigError

if TYPE_CHECKING:
    from ironclip.evaluation.evaluate import EvaluationProgress
    from ironclip.evaluation.store import RunStore

LINF_BUDGETS = ("1/255", "2/255", "4/255")


def eval_command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help='A run folder or a model source; see "ironclip list models".')
    ],
    suite: Annotated[
        str, typer.Option("--suite", metavar="SUITE", help="Name of a suite, or a YAML file.")
    ] = "natural",
    dataset: Annotated[
        list[str] | None, typer.Option("--dataset", help="Only this data set of the suite; repeatable.", metavar="NAME")
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            "--attack",
            help="NAME, NAME:key=value,key=value, or a list such as standard; repeatable.  [default: pgd]",
            show_default=False,
            metavar="ATTACK",
        ),
    ] = None,
    norm: Annotated[Literal["linf", "l2"], typer.Option("--norm", help="Norm of the ball.")] = "linf",
    eps: Annotated[
        list[str] | None,
        typer.Option(
            "--eps",
            help="Radius for pixels in [0, 1]; repeatable.  [default for linf: 1/255, 2/255, 4/255]",
            show_default=False,
            metavar="RADIUS",
        ),
    ] = None,
    out: Out = None,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="What reports call the model.")] = None,
    data_root: DataRoot = "data",
    limit: Limit = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of every draw.")] = 0,
    device: Device = "cpu",
    shard: Annotated[
        str, typer.Option("--shard", metavar="I/N", help="Part i of n, from 0; join them with merge.")
    ] = "0/1",
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, metavar="N", help="Rounded up to a multiple of 16.")
    ] = 64,
    search_dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option("--search-dtype", help="Of the search; verdicts are float32.")
    ] = "float32",
    save: Annotated[
        Literal["gallery", "all", "none"], typer.Option("--save", help="Which attacked images to keep.")
    ] = "gallery",
    no_compact: Annotated[bool, typer.Option("--no-compact", help="Go on attacking what is broken.")] = False,
    no_fast: Annotated[bool, typer.Option("--no-fast", help="Use open_clip's own forward pass.")] = False,
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Measure clean and robust accuracy on the data sets of a suite.

    Goes on with the run that --out holds, by default runs/eval/SUITE/MODEL.
    """
    part = read_shard(shard)
    if eps is None and norm != "linf":
        raise ConfigError("--norm l2 without --eps.", "Give the radius, such as --eps 0.5")

    from ironclip.attacks.threat_model import ThreatModel
    from ironclip.evaluation.evaluate import EvaluationRequest, evaluate_suite
    from ironclip.files import hold_folder

    request = EvaluationRequest(
        model=model,
        suite=suite,
        data_root=data_root,
        attacks=tuple(read_attack(text) for text in attack or ["pgd"]),
        threats=tuple(ThreatModel(norm=norm, eps=radius) for radius in eps or LINF_BUDGETS),
        out=out or _default_out(suite, name or _short_name(model), part),
        name=name,
        datasets=tuple(dataset) if dataset else None,
        seed=seed,
        limit=limit,
        device=device,
        tile=batch_size,
        search_dtype=search_dtype,
        shard=part,
        strict=strict,
        save=save,
        compact=not no_compact,
        fast=not no_fast,
        command=tuple(sys.argv),
    )
    for threat in request.threats:
        tell(f"Adversary: {threat.caption()}")
    with Display() as display, hold_folder(request.out):

        def show(progress: EvaluationProgress) -> None:
            display.update(progress.unit, progress.done, progress.total, _status(progress))

        store = evaluate_suite(request, progress=show)
    if json:
        say_json({"run": str(store.path), "rows": _records(store)})
        return
    _say_results(store)
    say(f"\nStored in {store.path}. A page of it: ironclip report {store.path}")


def _default_out(suite: str, model: str, part: tuple[int, int]) -> Path:
    shard = f"-shard-{part[0]}-of-{part[1]}" if part[1] > 1 else ""
    return Path("runs", "eval", as_file_name(Path(suite).stem), as_file_name(model) + shard)


def _short_name(model: str) -> str:
    """Return the name of a folder, else the whole source."""
    folder = Path(model.partition(":")[2] or model)
    return folder.resolve().name if folder.is_dir() else model


def _status(progress: EvaluationProgress) -> str:
    shares = {"clean": progress.clean_accuracy, "robust": progress.robust_accuracy}
    known = [f"{name} {100 * share:.1f} %" for name, share in shares.items() if share is not None]
    parts = [f"{', '.join(known)} so far"] if known else []
    if progress.standing is not None:
        parts.append(f"{progress.standing} of those under attack still stand")
    return "; ".join(parts)


def _records(store: RunStore) -> list[dict[str, Any]]:
    records = []
    for unit in _units_with_rows(store):
        record = store.record(unit)
        about = {"dataset": record.dataset, "attack": record.attack.label, "threat": record.threat.caption}
        records.append(about | asdict(store.aggregate(unit)))
    return records


def _say_results(store: RunStore) -> None:
    """Print a row a unit, and another for the mean over classes where that is what the data set is judged by."""
    from ironclip.report.wording import coverage, share

    rows = []
    for unit in _units_with_rows(store):
        record, figures = store.record(unit), store.aggregate(unit)
        info = store.run.datasets[record.dataset]
        head = [info.title, record.threat.caption, record.attack.label, coverage(figures.totals.n, figures.n_total)]
        rows.append([*head, share(figures.clean_accuracy), share(figures.robust_accuracy)])
        clean, robust = figures.clean_mean_per_class, figures.robust_mean_per_class
        if info.metric == "mean_per_class" and clean and robust:
            rows.append(["  mean over classes", "", "", "", share(clean), share(robust)])
    say_table(["data set", "adversary", "attack", "of", "clean accuracy", "robust accuracy"], rows)


def _units_with_rows(store: RunStore) -> list[str]:
    return [unit for unit in store.units() if store.done_ids(unit)]
