"""`ironclip bench`: how fast this machine is, and how fast IronCLIP is on it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ironclip.cli.options import Device, Json
from ironclip.cli.output import Display, say, say_json, say_table

What = Literal["peaks", "image", "text", "step"]


def bench_command(
    what: Annotated[
        What | None, typer.Argument(metavar="NAME", help="peaks, image, text or step; all of them by default.")
    ] = None,
    model: Annotated[
        str, typer.Option("--model", help="Model source, such as open_clip:ViT-B-32/random.", metavar="SOURCE")
    ] = "tiny",
    method: Annotated[str, typer.Option("--method", help="Whose training step is timed.", metavar="NAME")] = "tecoa",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images at a time.", metavar="N")] = 32,
    classes: Annotated[
        int, typer.Option("--classes", min=2, help="Class prompts of text and step.", metavar="N")
    ] = 100,
    rounds: Annotated[
        int,
        typer.Option(
            "--rounds", min=1, help="Times that each is measured, after one that does not count.", metavar="N"
        ),
    ] = 5,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Measure speed against stock open_clip and the machine's peak.

    Everything takes turns in one run; figures are medians. Run it on an idle machine.
    """
    from ironclip.benchmarking.bench import NAMES, Bench
    from ironclip.machine import describe_machine

    bench = Bench(model, method=method, batch=batch, classes=classes, rounds=rounds, device=device)
    wanted = NAMES if what is None else (what,)
    results: dict[str, Any] = {}
    with Display() as display:
        for number, name in enumerate(wanted, 1):
            results[name] = bench.measure(name)
            display.update("bench", number, len(wanted), name)
    machine = describe_machine(Path())
    if json:
        settings = {"model": model, "method": method, "batch": batch, "classes": classes, "rounds": rounds}
        found = {name: [asdict(line) for line in lines] for name, lines in results.items()}
        say_json({"machine": asdict(machine), "device": device, **settings, **found})
        return
    say(f"{machine.processor}, {machine.threads} threads, torch {machine.torch}")
    say(f"{model} on {device}, median of {rounds}")
    columns = ("what", "side", "seconds", "a second", "ours is so many times as fast", "share of peak")
    rows = [line.row() for lines in results.values() for line in lines]
    say_table(columns, rows)
