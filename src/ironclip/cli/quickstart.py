"""`ironclip quickstart`: attack the bundled model, tune it, attack it again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ironclip.cli.options import Device
from ironclip.cli.output import Display, say, say_table, tell

if TYPE_CHECKING:
    from ironclip.quickstart import Part, QuickstartProgress, QuickstartResult


def quickstart_command(
    out: Annotated[Path, typer.Option("--out", help="Folder of the result.", metavar="DIR")] = Path("quickstart"),
    model: Annotated[
        str, typer.Option("--model", metavar="MODEL", help='A model source; see "ironclip list models".')
    ] = "tiny",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of every draw.")] = 0,
    device: Device = "cpu",
) -> None:
    """Attack a small CLIP, tune it, and attack it again.

    Needs nothing but IronCLIP: model and images come with it. Goes on where it stopped.
    """
    from ironclip.files import hold_folder
    from ironclip.quickstart import quickstart

    tell(f"Everything goes into {out}; stopped, the same command goes on.")
    with Display() as display, hold_folder(out):

        def show(progress: QuickstartProgress) -> None:
            display.update(progress.task, progress.done, progress.total, progress.status)

        found = quickstart(out, model=model, device=device, seed=seed, command=sys.argv, begin=_announce, progress=show)
    _say_result(found, out)


def _announce(part: Part) -> None:
    from ironclip.report.wording import duration

    time = ""
    if part.seconds is not None and part.seconds_left is not None:
        time = f" About {duration(part.seconds)} on two cores; {duration(part.seconds_left)} to the end."
    tell(f"[{part.number}/{part.count}] {part.task}{time}")


def _say_result(found: QuickstartResult, out: Path) -> None:
    """Print the table, where the page is, and what to try next."""
    from ironclip.report.wording import listing, share

    rows = []
    for table in found.results.datasets:
        clean, robust = table.clean, table.robust[table.reference]
        for index, model in enumerate(found.results.models):
            cells = [share(cell.share) if cell else "not run" for cell in (clean[index], robust[index])]
            rows.append(["" if index else table.info.title, model.name, *cells])
    budget = found.results.datasets[0].budgets[found.results.datasets[0].reference]
    images = found.results.datasets[0].record.sample_ids.count
    attack = listing([attack.label for attack in budget.attacks])
    say("")
    say_table(["images", "model", "right", f"right under attack, {budget.eps}"], rows)
    say(f"\n{images} images a set, 95 % intervals. Attack: {attack}, {budget.caption}.")
    say(f"Tuned on {listing(found.tuned_on)}; on none of the images in the table.")
    say(f"\nThe page with curves and attacked images: {found.page}\n")
    first, last = next(iter(found.tuned.values())), next(reversed(found.tuned))
    say("What to try next:")
    say(f"  ironclip eval {first} --suite bundled    # all bundled images")
    say(f"  ironclip train quickstart/{last} --set 'data.train=folder:IMAGES?size=32'    # images of yours, no labels")
    say("  ironclip list methods    # what else there is")
