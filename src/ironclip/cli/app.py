"""The commands and their names."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

import ironclip
from ironclip.cli import (
    attack,
    bench,
    demo,
    diagnose,
    doctor,
    evaluate,
    evaluate_task,
    exporting,
    importing,
    listing,
    merge,
    pretrain,
    push,
    quickstart,
    report,
    train,
    validate,
    watch,
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
app.command("watch")(watch.watch_command)
app.command("eval")(evaluate.eval_command)
app.command("eval-task")(evaluate_task.eval_task_command)
app.command("attack")(attack.attack_command)
app.command("demo")(demo.demo_command)
app.command("diagnose")(diagnose.diagnose_command)
app.command("report")(report.report_command)
app.command("merge")(merge.merge_command)
app.command("export")(exporting.export_command)
app.command("push")(push.push_command)
app.command("import")(importing.import_command)
app.command("validate")(validate.validate_command)
app.command("pretrain")(pretrain.pretrain_command)
app.command("list")(listing.list_command)
app.command("doctor")(doctor.doctor_command)
app.command("bench")(bench.bench_command)


class _Command(TyperCommand):
    """A command whose complaint about a value names it, which not every release of typer does."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as complaint:
            problems = getattr(complaint.__cause__, "errors", None)
            if problems is not None:
                message = complaint.message.removeprefix("Value error, ")
                given = str(problems()[0]["input"])
                complaint.message = message if f"'{given}'" in message else f'{message} (got "{given}")'
            raise


for command in app.registered_commands:
    command.cls = _Command
