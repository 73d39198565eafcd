"""`ironclip import`: read a checkpoint that a robust CLIP was published as."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ironclip.cli.options import Json
from ironclip.cli.output import say, say_json


def import_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The checkpoint, as it was downloaded.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the result; new or empty.")],
    layout: Annotated[
        Literal["robustvlm", "agft", "tga_zsr"],
        typer.Option(
            "--format",
            help="Who published it: robustvlm (FARE, TeCoA), agft, tga_zsr (also TeCoA's own, PMG-AFT, UCAT).",
        ),
    ],
    base: Annotated[
        str,
        typer.Option(
            "--base",
            metavar="SOURCE",
            help="The model that was tuned, such as open_clip:ViT-L-14-quickgelu/openai; its text tower is taken.",
        ),
    ],
    json: Json = False,
) -> None:
    """Make a model of a published robust checkpoint.

    It holds an image tower alone; the text tower is that of the base. No code of the file is run: a pickle is read
    with weights_only=True.
    """
    from ironclip.models.export import refuse_occupied
    from ironclip.models.published import import_published
    from ironclip.models.sources import load_model, save_model

    refuse_occupied(out)  # before the weights are read
    sha256 = save_model(import_published(file, layout, load_model(base)), out)
    if json:
        say_json({"model": f"local-dir:{out}", "sha256": sha256})
        return
    say(f"Done: {out}")
    say(f"Measure it: ironclip eval local-dir:{out}")
