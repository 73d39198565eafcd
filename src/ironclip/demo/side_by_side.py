"""One image under attack by two models: what the page shows, without the page.

Each model is attacked on its own, by an adversary who knows it, at its own resolution. The label is what the model
says of the clean image, so a change of answer is what counts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ironclip.attacks.base import ATTACKS
from ironclip.attacks.threat_model import ThreatModel
from ironclip.data.images import UNREADABLE, open_image
from ironclip.errors import ConfigError, DataError
from ironclip.evaluation.one_image import attack_image, check_choice
from ironclip.models.clip import CLIPModel
from ironclip.models.zero_shot import ZeroShotClassifier
from ironclip.report.wording import count, magnification, percent

TEMPLATE = "a photo of a {}."
CLASSES = 100
"""A page does not take more names."""

CHOICES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "FGSM: one step": ("fgsm", {}),
    "PGD-20: twenty steps": ("pgd", {"steps": 20}),
    "APGD-50: fifty steps, adaptive": ("apgd", {"steps": 50}),
    "Square: 500 tries, no gradients": ("square", {"queries": 500}),
}
"""Attacks that the page offers: registered name and settings."""

RADII = ("1/255", "2/255", "4/255", "8/255")
"""Linf radii that the page offers."""

_SIDE = 256
"""About so many pixels wide is a picture shown."""

Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Outcome:
    """What one model made of the image, before and after.

    Attributes:
        model: Its name.
        clean: Probability of each class on the clean image, by name.
        attacked: The same after the attack.
        before: The clean image as the model reads it, uint8 `[H, W, 3]`, small ones enlarged.
        change: What the attack added, magnified around grey.
        after: The attacked image.
        magnified: By how much, in words.
        broken: Whether the answer changed, as the driver verified.
        forwards: Passes through the model.
        backwards: Gradients.
        seconds: Wall time of the attack.
    """

    model: str
    clean: dict[str, float]
    attacked: dict[str, float]
    before: Picture
    change: Picture
    after: Picture
    magnified: str
    broken: bool
    forwards: int
    backwards: int
    seconds: float

    @property
    def sentence(self) -> str:
        """What happened, and what it cost."""
        first, last = (max(odds, key=odds.__getitem__) for odds in (self.clean, self.attacked))
        before, after = (percent(odds[first]) for odds in (self.clean, self.attacked))
        if self.broken:
            answer = f'Fooled: "{first}" became "{last}" ({percent(self.attacked[last])} % sure).'
        else:
            answer = f'Not fooled: still "{first}" ({before} % before, {after} % after). Another attack might.'
        passes = f"{count(self.forwards)} forward and {count(self.backwards)} backward passes"
        return f"{answer} Cost of the attack: {passes}, {self.seconds:.2f} s."


class SideBySide:
    """Models that are shown the same image and the same game.

    Args:
        models: By the name that the page shows, in its order.
        seed: Of random starts.
    """

    def __init__(self, models: Mapping[str, CLIPModel], *, seed: int = 0) -> None:
        self.models, self.seed = dict(models), seed

    def attack(self, image: bytes, classes: str, choice: str, eps: str) -> list[Outcome]:
        """Attack each model's answer to an image.

        Args:
            image: An encoded image.
            classes: Names with commas between, at least two.
            choice: One of `CHOICES`.
            eps: Radius of the linf ball, such as "4/255".

        Raises:
            ConfigError: Fewer than two classes, two that read alike, more than `CLASSES`, or no such attack.
            ValueRangeError: The radius is none.
            DataError: No readable image.
        """
        names = read_names(classes)
        if choice not in CHOICES:
            raise ConfigError(f'there is no attack "{choice}" here.', f"Choose one of: {'; '.join(CHOICES)}.")
        name, settings = CHOICES[choice]
        attack = ATTACKS.create(name, dict(settings))
        threat = ThreatModel(eps=eps, acting="model_input")
        opened = read_image(image)
        found = []
        for title, model in self.models.items():
            pixels = model.preprocess(opened)
            classifier = ZeroShotClassifier(model, names, [TEMPLATE])
            began = time.perf_counter()
            attacked = attack_image(classifier, names, pixels, attack, threat, seed=self.seed)
            seconds = time.perf_counter() - began
            first, last = attacked.looks[0], attacked.looks[-1]
            change = last.pixels - first.pixels
            reach = float(np.abs(change).max())
            factor = 0.5 / reach if reach else 1.0
            found.append(
                Outcome(
                    model=title,
                    clean=dict(zip(names, first.probabilities, strict=True)),
                    attacked=dict(zip(names, last.probabilities, strict=True)),
                    before=_shown(first.pixels),
                    change=_shown(0.5 + factor * change),
                    after=_shown(last.pixels),
                    magnified=magnification(factor),
                    broken=attacked.broken,
                    forwards=attacked.forwards,
                    backwards=attacked.backwards,
                    seconds=seconds,
                )
            )
        return found


def read_names(classes: str) -> Sequence[str]:
    """Read class names with commas or ends of lines between.

    Raises:
        ConfigError: Fewer than two, two that read alike, or more than `CLASSES`.
    """
    names = [name.strip() for name in classes.replace("\n", ",").split(",") if name.strip()]
    if not 2 <= len(names) <= CLASSES:
        raise ConfigError(f"Class names: {count(len(names))}.", f"Give 2 to {CLASSES}, with commas between.")
    check_choice(names)
    return names


def read_image(image: bytes) -> Image.Image:
    """Decode an image.

    Raises:
        DataError: It is none.
    """
    try:
        opened = open_image(image)
        opened.load()
    except UNREADABLE as error:
        raise DataError(f"no readable image: {' '.join(str(error).split())}", "Give another file.") from error
    return opened


def _shown(pixels: npt.NDArray[np.float32]) -> Picture:
    """Turn pixels `[3, H, W]` into 8-bit `[H, W, 3]`, small ones enlarged by whole factors."""
    levels = np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    factor = max(1, round(_SIDE / max(levels.shape[:2])))
    return np.repeat(np.repeat(levels, factor, axis=0), factor, axis=1)
