"""`ironclip merge`: join the shards of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ironclip.cli.options import Json
from ironclip.cli.output import say, say_json


def merge_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders of one evaluation.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the result.", metavar="DIR")],
    json: Json = False,
) -> None:
    """Join the shards of one evaluation into a new run."""
    from ironclip.evaluation.merging import merge

    merged = merge(runs, out)
    units = {unit: len(merged.done_ids(unit)) for unit in merged.units()}
    if json:
        say_json({"run": str(merged.path), "samples": units})
        return
    for unit, count in units.items():
        say(f"{unit}: {count} of {merged.record(unit).sample_ids.count} samples")
    say(f"Stored in {merged.path}. A page of it: ironclip report {merged.path}")
