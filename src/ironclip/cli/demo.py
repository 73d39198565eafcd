"""`ironclip demo`: a page on which anybody can attack an image."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from ironclip.cli.options import Device
from ironclip.cli.output import tell
from ironclip.errors import ConfigError

QUICKSTART = Path("quickstart", "train", "tecoa")


def demo_command(
    original: Annotated[
        str, typer.Option("--original", metavar="MODEL", help='A model source; see "ironclip list models".')
    ] = "tiny",
    robust: Annotated[
        str | None,
        typer.Option("--robust", metavar="MODEL", help=f"The model beside it; by default the run {QUICKSTART}."),
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", metavar="N", min=1, max=65535, help="Port on this machine; else a free one.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of every draw.")] = 0,
    device: Device = "cpu",
) -> None:
    """Try it on a page: one image, two models, an attack on each.

    Serves the page to this machine until interrupted; needs the extra "demo" and no network.
    """
    if robust is None and not (QUICKSTART / "result.json").is_file():
        raise ConfigError(
            f"there is no robust model in {QUICKSTART}.",
            "Make one in some minutes with: ironclip quickstart. Or name one with --robust MODEL.",
        )
    from ironclip.demo.page import build_page, launch
    from ironclip.demo.pictures import specimens
    from ironclip.demo.side_by_side import SideBySide
    from ironclip.models.sources import load_model

    sources = {"original": original, "robust": robust or f"run:{QUICKSTART}"}
    models = {f"{role}: {source}": load_model(source, device=device) for role, source in sources.items()}
    with TemporaryDirectory() as folder:
        page = build_page(SideBySide(models, seed=seed), specimens(), Path(folder))
        tell("Ctrl-C ends it.")
        launch(page, port=port)
