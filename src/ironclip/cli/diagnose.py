"""`ironclip diagnose`: can the rows of a run be trusted?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ironclip.cli.options import DataRoot, Device, Json, Limit
from ironclip.cli.output import say, say_json, say_table, tell


def diagnose_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of an evaluation.")],
    suite: Annotated[
        str | None, typer.Option("--suite", metavar="SUITE", help="Name of a suite, or a YAML file.")
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option("--dataset", help="Only rows of this data set; repeatable.", metavar="NAME")
    ] = None,
    surrogate: Annotated[
        list[str] | None,
        typer.Option(
            "--surrogate", metavar="MODEL", help="Another model, whose adversarial images are tried; repeatable."
        ),
    ] = None,
    light: Annotated[bool, typer.Option("--light", help="Only what an evaluation checks by itself.")] = False,
    require_trusted: Annotated[
        bool, typer.Option("--require-trusted", help="End with exit code 1 unless every row is trusted.")
    ] = False,
    data_root: DataRoot = "data",
    limit: Limit = None,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Look for signs that the rows of an evaluation are better than the model, and store a verdict on each."""
    from ironclip.evaluation.diagnosed_run import diagnose_run

    store = diagnose_run(
        run,
        suite=suite,
        data_root=data_root,
        datasets=dataset,
        surrogates=surrogate or (),
        profile="light" if light else "full",
        samples=limit,
        device=device,
        told=lambda unit, verdict: tell(f"{unit}: {', '.join(verdict)}"),
    )
    found = {unit: diagnosis for unit in store.units() if (diagnosis := store.diagnosis(unit))}
    if json:
        say_json({"run": str(store.path), "rows": {unit: asdict(diagnosis) for unit, diagnosis in found.items()}})
    else:
        for unit, diagnosis in found.items():
            say(f"{unit}: {', '.join(diagnosis.verdict)} ({diagnosis.samples} samples probed)")
            numbers = [
                [
                    check.name,
                    check.state,
                    *("" if one is None else f"{one:.4g}" for one in (check.value, check.threshold)),
                ]
                for check in diagnosis.checks
            ]
            say_table(["check", "state", "value", "threshold"], numbers)
    if require_trusted and any(
        diagnosis.verdict[0] not in ("trusted", "trusted(light)") for diagnosis in found.values()
    ):
        raise typer.Exit(1)
