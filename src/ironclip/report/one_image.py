"""One image under attack as a self-contained page: no script, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jinja2
import numpy as np
import numpy.typing as npt

from ironclip.report.gallery import png_uri
from ironclip.report.wording import magnification, percent, plural

FRAMES = 6
CLASSES = 8


@dataclass(frozen=True)
class Frame:
    """The image at some moment of the attack.

    Attributes:
        look: Passes through the model so far; 0 is the clean image.
        pixels: Float32 `[3, H, W]`.
        probabilities: Of the classes, in their order.
    """

    look: int
    pixels: npt.NDArray[np.float32]
    probabilities: tuple[float, ...]

    @property
    def answer(self) -> int:
        """Return the class of the largest probability."""
        return int(np.argmax(self.probabilities))


@dataclass(frozen=True)
class _Bar:
    """A class before and after."""

    name: str
    clean: float
    attacked: float


def chosen_frames(count: int) -> list[int]:
    """Choose which of so many looks are shown: the first, the last, and some at even distances between them."""
    return sorted({round(share * (count - 1)) for share in np.linspace(0, 1, min(FRAMES, count))})


def render_attack(
    frames: Sequence[Frame], class_names: Sequence[str], *, image: str, model: str, game: str, attack: str, broken: bool
) -> str:
    """Return the page.

    Args:
        frames: At least the clean image and where the attack ended.
        class_names: What the model chose from.
        image: Name of the image's file.
        model: Name of the model.
        game: The threat model in one line.
        attack: Name of the attack.
        broken: The verdict.
    """
    first, last = frames[0], frames[-1]
    change = last.pixels - first.pixels
    reach = float(np.abs(change).max())
    factor = 0.5 / reach if reach else 1.0
    leading = sorted(range(len(class_names)), key=lambda c: -max(first.probabilities[c], last.probabilities[c]))
    shown = leading[:CLASSES]
    bars = [_Bar(class_names[c], first.probabilities[c], last.probabilities[c]) for c in shown]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ironclip.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("attack.html.j2").render(
        frames=[(frame, png_uri(frame.pixels)) for frame in frames],
        clean=png_uri(first.pixels),
        change=png_uri(0.5 + factor * change),
        attacked=png_uri(last.pixels),
        magnified=magnification(factor),
        levels=f"{255 * reach:.1f}",
        bars=bars,
        hidden=plural(len(leading) - len(shown), "class") if len(leading) > len(shown) else "",
        class_names=class_names,
        image=image,
        model=model,
        game=game,
        attack=attack,
        broken=broken,
        percent=percent,
    )
