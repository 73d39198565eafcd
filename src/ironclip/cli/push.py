"""`ironclip push`: publish a training run on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ironclip.cli.options import Json, Out
from ironclip.cli.output import say, say_json

if TYPE_CHECKING:
    from ironclip.publishing import Layout


def push_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished training run.")],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="ORG/NAME on the hub; made if it is not there.")],
    results: Annotated[
        list[Path] | None,
        typer.Option(
            "--results",
            metavar="RUN",
            help="Run folder of eval for the card; may be given again. The first is compared with the others.",
        ),
    ] = None,
    layout: Annotated[
        Literal["both", "open_clip", "transformers"], typer.Option("--format", help="The libraries that will load it.")
    ] = "both",
    license_id: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="The hub's identifier of a licence, such as mit.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the folder and upload nothing.")] = False,
    out: Out = None,
    json: Json = False,
) -> None:
    """Publish a training run on the Hugging Face hub.

    Writes a model card and the files of open_clip and transformers into runs/push/NAME unless --out is given, and
    uploads them. Stopped, the same command goes on.
    """
    from ironclip.publishing import check_repository, upload, write_repository

    check_repository(repository)
    layouts: tuple[Layout, ...] = ("open_clip", "transformers") if layout == "both" else (layout,)
    folder = write_repository(
        run,
        out or Path("runs", "push", repository.rpartition("/")[2]),
        repository=repository,
        results=results or (),
        layouts=layouts,
        license_id=license_id,
    )
    source = None if dry_run else upload(folder, repository, private=private)
    if json:
        say_json({"folder": str(folder), "card": str(folder / "README.md"), "source": source})
        return
    if source is None:
        say(f"{folder}\nNothing was uploaded; without --dry-run it goes to {repository}.")
        return
    say(f"Done: {source}, from {folder}")
