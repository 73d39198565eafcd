"""The typographic attack: the name of a wrong class, written into the image.

Source: Goh et al., Multimodal neurons in artificial neural networks, Distill 2021; Materzynska et al., CVPR 2022,
arXiv:2206.07835. Deviations: the wrong names that the model finds nearest are tried first; the font is Pillow's own.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ironclip.attacks.base import Attack, State, register_attack
from ironclip.attacks.objectives import Objective
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError
from ironclip.randomness import SampleRandom

_LARGEST = 200
"""Pixels: where the search for the size of the letters begins."""


@dataclass(frozen=True, kw_only=True)
class TypographicState(State):
    """Classes to be written `[B, K]`, heights at which to write `[B]` in [0, 1], and which word is next."""

    rivals: Tensor
    places: Tensor
    threat: ThreatModel
    class_names: tuple[str, ...]
    word: int
    queries: Tensor


@register_attack("typographic", tags={"local", "score"})
@dataclass(frozen=True, kw_only=True)
class Typographic(Attack):
    """Black letters on a white band across the image, a wrong class's name, as large as the band allows.

    The ball still holds: a word of any contrast is the linf ball of radius 1, `--eps 1`.

    Attributes:
        queries: Names to try, those of the nearest wrong classes; each costs one forward.
        share: Height of the band as a share of the image's.
        loss: The objective that an evaluation builds: "ce", "margin" or "dlr".
        restarts: Places to try on survivors.
    """

    queries: int = 5
    share: float = 0.25
    loss: str = "margin"
    restarts: int = 1

    def __post_init__(self) -> None:
        if self.queries < 1 or self.restarts < 1:
            raise ConfigError(f"attack: {self.queries} queries, {self.restarts} restarts.", "Give at least 1 of each.")
        if not 0 < self.share <= 1:
            raise ConfigError(f"attack.share is {self.share}.", "Give a share of the height above 0, at most 1.")

    def start(
        self, objective: Objective, pixels: Tensor, threat: ThreatModel, random: SampleRandom
    ) -> TypographicState:
        """Rank the classes on the clean image.

        Raises:
            ConfigError: The classes have no names.
        """
        if not objective.class_names:
            raise ConfigError(
                "the typographic attack writes class names, and this model's classes have none.",
                "Attack a zero-shot classifier, or give the model class_names.",
            )
        with torch.no_grad():
            evaluation = objective.evaluate(pixels)
        rivals = objective.rivals(evaluation, self.queries)
        places = random.uniform((1,), 0, 1, "place")[:, 0].to(pixels.device)
        state = TypographicState.fresh(
            pixels,
            rivals=rivals,
            places=places,
            threat=threat,
            class_names=tuple(objective.class_names),
            word=0,
            queries=torch.zeros(len(pixels), dtype=torch.int64, device=pixels.device),
        )
        return state.examined(pixels, evaluation, backward=False)

    def step(self, objective: Objective, state: State) -> TypographicState:
        """Write the next name and examine the image."""
        if not isinstance(state, TypographicState):
            raise TypeError(f"typographic cannot continue a {type(state).__name__}")
        words = [state.class_names[rival] for rival in state.rivals[:, state.word].tolist()]
        written = write_words(state.origin, words, state.places.tolist(), self.share)
        point = state.threat.project(written, state.origin)
        with torch.no_grad():
            evaluation = objective.evaluate(point)
        word = state.word + 1
        done = word == state.rivals.shape[1]
        return state.examined(point, evaluation, backward=False, word=word, queries=state.queries + 1, done=done)


def write_words(pixels: Tensor, words: list[str], places: list[float], share: float) -> Tensor:
    """Write a word into each image, `[B, 3, H, W]`.

    Args:
        pixels: Images in [0, 1].
        words: One an image.
        places: Where the band stands, from 0 (top) to 1 (bottom).
        share: Height of the band as a share of the image's.
    """
    height, width = pixels.shape[-2:]
    band = min(max(round(share * height), 1), height)
    written = pixels.clone()
    for row, (word, place) in enumerate(zip(words, places, strict=True)):
        top = min(int(place * (height - band + 1)), height - band)
        levels = np.asarray(_band(word, width, band), dtype=np.float32) / np.float32(255)
        written[row, :, top : top + band] = torch.from_numpy(levels).to(pixels)
    return written


@functools.lru_cache(maxsize=4096)
def _band(word: str, width: int, height: int) -> Image.Image:
    """Draw a word in the middle of a white band, 8-bit grey, in the largest letters that fit."""
    image = Image.new("L", (width, height), 255)
    draw = ImageDraw.Draw(image)
    size = min(height, _LARGEST)
    while size > 1:
        left, top, right, bottom = draw.textbbox((0, 0), word, font=ImageFont.load_default(size))
        if right - left <= width and bottom - top <= height:
            break
        size -= 1
    font = ImageFont.load_default(size)
    left, top, right, bottom = draw.textbbox((0, 0), word, font=font)
    draw.text(((width - right - left) / 2, (height - bottom - top) / 2), word, fill=0, font=font)
    return image
