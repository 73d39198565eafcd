"""The commands and their names."""

from __future__ import annotations

from typing import Annotated

import typer

import ironclip
from ironclip.cli import (
    attack,
    diagnose,
    doctor,
    evaluate,
    exporting,
    importing,
    listing,
    merge,
    pretrain,
    quickstart,
    report,
    train,
    validate,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    # Plain text: the same in every terminal, and torch is not the only thing that is slow to import.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


@app.callback(invoke_without_command=True)
def ironclip_command(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; allowed anywhere.")] = False,
) -> None:
    """Make CLIP-like models robust against adversarial images, and measure how robust they are."""
    if version:
        typer.echo(ironclip.__version__)
        raise typer.Exit


app.command("quickstart")(quickstart.quickstart_command)
app.command("train")(train.train_command)
app.command("eval")(evaluate.eval_command)
app.command("attack")(attack.attack_command)
app.command("diagnose")(diagnose.diagnose_command)
app.command("report")(report.report_command)
app.command("merge")(merge.merge_command)
app.command("export")(exporting.export_command)
app.command("import")(importing.import_command)
app.command("validate")(validate.validate_command)
app.command("pretrain")(pretrain.pretrain_command)
app.command("list")(listing.list_command)
app.command("doctor")(doctor.doctor_command)
