"""Which parameters a method tunes."""

from __future__ import annotations

from enum import Enum

from torch import nn

from ironclip.errors import ConfigError
from ironclip.models.clip import CLIPModel


class Tunable(Enum):
    """The part of a model that a method tunes; all else is frozen."""

    VISION = "vision"
    TEXT = "text"
    BOTH = "both"
    PROMPTS = "prompts"
    ADAPTERS = "adapters"


def tuned_parameters(model: CLIPModel, part: Tunable) -> dict[str, nn.Parameter]:
    """Return the parameters of a part by name, in a fixed order. The logit scale is never tuned.

    Raises:
        ConfigError: Prompts or adapters of a model that has none.
    """
    if part in (Tunable.PROMPTS, Tunable.ADAPTERS):
        piece = model.prompts if part is Tunable.PROMPTS else model.adapters
        wanted = set() if piece is None else {id(parameter) for parameter in piece.parameters()}
    else:
        vision = {id(parameter) for parameter in model.visual.parameters()} if part is not Tunable.TEXT else set()
        text = {id(parameter) for parameter in model.text_parameters()} if part is not Tunable.VISION else set()
        wanted = vision | text
    if not wanted:
        raise ConfigError(f"this model has no {part.value} to tune.", "Use a method that tunes a tower.")
    return {name: parameter for name, parameter in model.clip.named_parameters() if id(parameter) in wanted}
