"""`ironclip attack`: show one image being attacked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ironclip.cli.options import Device, Json
from ironclip.cli.output import say, say_json, say_table, tell
from ironclip.errors import DataError

if TYPE_CHECKING:
    from ironclip.evaluation.one_image import ImageUnderAttack

TEMPLATE = "a photo of a {}."
LINES = 12


def attack_command(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A file with an image.")],
    classes: Annotated[
        str, typer.Option("--classes", metavar="NAMES", help="What may be seen in it, with commas between.")
    ],
    model: Annotated[
        str, typer.Option("--model", metavar="MODEL", help='A model source; see "ironclip list models".')
    ] = "tiny",
    eps: Annotated[
        str, typer.Option("--eps", metavar="RADIUS", help="Of the linf ball, for pixels in [0, 1].")
    ] = "4/255",
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The page.")] = Path("attack.html"),
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of every draw.")] = 0,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Show one image being attacked, here and as a page.

    The attack leads the model away from its own answer, at the model's resolution.
    """
    from ironclip.attacks.base import ATTACKS
    from ironclip.attacks.threat_model import ThreatModel
    from ironclip.data.images import UNREADABLE, open_image
    from ironclip.evaluation.one_image import attack_image, check_choice
    from ironclip.files import write_atomically
    from ironclip.models.sources import load_model
    from ironclip.models.zero_shot import ZeroShotClassifier
    from ironclip.report.one_image import Frame, chosen_frames, render_attack

    threat = ThreatModel(eps=eps, acting="model_input")
    names = [name.strip() for name in classes.split(",") if name.strip()]
    check_choice(names)
    if not image.is_file():
        raise DataError(f"there is no file {image}.", "Give the path of an image.")
    try:
        opened = open_image(image.read_bytes())
        opened.load()
    except UNREADABLE as error:
        raise DataError(
            f"{image} is no readable image: {' '.join(str(error).split())}", "Give another file."
        ) from error
    clip = load_model(model, device=device)
    pixels = clip.preprocess(opened)
    caption = threat.caption((pixels.shape[1], pixels.shape[2]))
    tell(f"Adversary: {caption}")
    attack = ATTACKS.create("apgd", {"steps": 50})
    found = attack_image(ZeroShotClassifier(clip, names, [TEMPLATE]), names, pixels, attack, threat, seed=seed)
    frames = [
        Frame(look, found.looks[look].pixels, found.looks[look].probabilities)
        for look in chosen_frames(len(found.looks))
    ]
    page = render_attack(
        frames,
        names,
        image=image.name,
        model=model,
        game=caption,
        attack="APGD-50",
        broken=found.broken,
    )
    write_atomically(out, page.encode())
    first, last = found.looks[0], found.looks[-1]
    if json:
        say_json(
            {
                "broken": found.broken,
                "clean": dict(zip(names, first.probabilities, strict=True)),
                "attacked": dict(zip(names, last.probabilities, strict=True)),
                "forwards": found.forwards,
                "backwards": found.backwards,
                "page": str(out),
            }
        )
        return
    _say_looks(found, names)
    verdict = f"Fooled: {names[first.answer]} became {names[last.answer]}" if found.broken else "Not fooled"
    say(f"\n{verdict}, after {found.forwards} forward and {found.backwards} backward passes.")
    say(f"The page: {out}")


def _say_looks(found: ImageUnderAttack, names: list[str]) -> None:
    """Print a line for the clean image, for the end, and for some points between."""
    count = len(found.looks)
    shown = sorted({round(line * (count - 1) / (LINES - 1)) for line in range(LINES)})
    own = found.looks[0].answer
    rows = []
    for number in shown:
        look = found.looks[number]
        share = look.probabilities[look.answer]
        rows.append([str(number), names[look.answer], f"{100 * share:.1f} %", f"{100 * look.probabilities[own]:.1f} %"])
    say_table(["look", "answer", "sure by", names[own]], rows)
