"""The stealth attack: an image that looks as before and makes the model say a given sentence.

Source: chs20/RobustVLM, Schlarmann et al., ICML 2024, arXiv:2402.12336, section 4.3; evaluation plan 7.1. Deviations:
an image is left as soon as its greedy answer begins with the sentence, verified in float32; prefix and exact matches
are counted beside the published substring, and all three once more after rounding to 8 bits, as a saved PNG would be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ironclip.attacks.driver import DriverSettings, Outcome, run_attack
from ironclip.attacks.threat_model import ThreatModel
from ironclip.attacks.vlm.climb import Climb
from ironclip.attacks.vlm.objectives import Say
from ironclip.attacks.vlm.speech import Match, match, said_of
from ironclip.errors import ConfigError


@dataclass(frozen=True)
class Spoken:
    """What a model says of some images, and how each text relates to the target."""

    texts: list[str]
    matches: list[Match]


@dataclass(frozen=True)
class SentenceOutcome:
    """What the attack did to each of N images.

    Attributes:
        search: What the driver says: points, passes, which greedy answers begin with the target.
        clean: What is said of the clean images; one that contains the target already is no success.
        attacked: What is said of the adversarial images.
        rounded: What is said of them once their pixels are multiples of 1/255.
    """

    search: Outcome
    clean: Spoken
    attacked: Spoken
    rounded: Spoken


def run_sentence(
    model: Any,
    pixels: Tensor,
    keys: Sequence[str],
    prompts: Sequence[str],
    target: str,
    threat: ThreatModel,
    *,
    steps: int = 500,
    max_new_tokens: int = 20,
    driver: DriverSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SentenceOutcome:
    """Try to make a model say one sentence of every image.

    Args:
        model: A VisionLanguageModel.
        pixels: Float32 `[N, 3, H, W]` in [0, 1], as the tower reads them.
        keys: One stable key an image.
        prompts: One an image.
        target: The sentence.
        threat: The game; its goal is "targeted".
        steps: Gradient steps at most.
        max_new_tokens: Of an answer; it must hold the sentence.
        driver: Tile, compaction, precision of the search.
        progress: Called after each step with how many images have fallen and how many are left.

    Raises:
        ConfigError: The game is not a targeted one.
        ValueRangeError: The sentence is empty.
    """
    if threat.goal != "targeted":
        raise ConfigError(f'the sentence attack plays no "{threat.goal}" game.', 'Set goal to "targeted".')
    driver = driver or DriverSettings()
    objective = Say(model, model.write(prompts, [target] * len(prompts)))
    # Nothing is drawn: the seed does not matter.
    search = run_attack(Climb(steps=steps), objective, pixels, keys, threat, seed=0, settings=driver, progress=progress)

    def spoken(points: Tensor) -> Spoken:
        texts = said_of(model, points, prompts, driver, max_new_tokens=max_new_tokens)
        return Spoken(texts, [match(text, target) for text in texts])

    points = search.adversarial
    return SentenceOutcome(search, spoken(pixels.detach().cpu()), spoken(points), spoken((points * 255).round() / 255))
