"""The untargeted ensemble on captions and answers, stage by stage on the images that are still left.

Each stage makes another reference unlikely; then the model speaks, its words are scored, the worst so far is kept, and
an image whose score is low enough leaves. Source: chs20/RobustVLM, Schlarmann et al., ICML 2024, arXiv:2402.12336,
appendix B; evaluation plan 7.1. Deviation: the fast stages search in bfloat16 where the model can, and else in float32,
not in float16; every point is verified in float32 by the driver.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ironclip.attacks.driver import DriverSettings, run_attack
from ironclip.attacks.threat_model import ThreatModel
from ironclip.attacks.vlm.climb import Climb
from ironclip.attacks.vlm.objectives import Say, Unsay
from ironclip.attacks.vlm.speech import said_of
from ironclip.errors import ConfigError, ShapeError

Score = Callable[[int, str], float]
"""Of an image, by its place, and a text: CIDEr-D times 100, or an accuracy; small is good for the adversary."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One search.

    Attributes:
        reference: Which reference to make unlikely; None for the one by which the image's worst text was found.
        target: A word to be said instead of a reference to be unsaid.
        from_worst: Begin at the worst image so far, else at the clean one.
        exact: Search in float32.
    """

    reference: int | None = None
    target: str | None = None
    from_worst: bool = False
    exact: bool = False

    @property
    def name(self) -> str:
        """What a waterfall calls it."""
        if self.target is not None:
            return f'say "{self.target}"'
        return "worst reference, float32" if self.reference is None else f"reference {self.reference}"


CAPTION_STAGES = (*(Stage(reference=place) for place in range(5)), Stage(from_worst=True, exact=True))
ANSWER_STAGES = (*CAPTION_STAGES, Stage(target="maybe", exact=True), Stage(target="Word", exact=True))


@dataclass(frozen=True, kw_only=True)
class EnsembleSettings:
    """How the ensemble runs.

    Attributes:
        stages: `CAPTION_STAGES` or `ANSWER_STAGES`.
        leave_below: An image leaves when its score falls below this: 10 for COCO, 2 for Flickr30k (CIDEr times 100);
            for accuracies any number that only 0 is below, such as 0.01.
        max_new_tokens: 20 for captions, 5 for answers.
        steps: Gradient steps a stage.
    """

    stages: tuple[Stage, ...] = CAPTION_STAGES
    leave_below: float = 10.0
    max_new_tokens: int = 20
    steps: int = 100

    def __post_init__(self) -> None:
        if not self.stages or self.stages[0].from_worst or self.max_new_tokens < 1:
            raise ConfigError(
                f"ensemble: {len(self.stages)} stages, {self.max_new_tokens} new tokens.",
                "Give stages of which the first begins at the clean image, and room for an answer.",
            )


@dataclass
class EnsembleOutcome:
    """What the ensemble did to each of N images.

    Attributes:
        adversarial: `[N, 3, H, W]` on the CPU, the image of the lowest score; the clean one where none is lower.
        clean_texts: What is said of the clean image.
        texts: What is said of `adversarial`.
        clean_scores: Their scores.
        scores: Likewise, the lowest of all stages.
        stage: Number of the stage that found it, -1 for the clean image.
        waterfall: A name and the mean score over all images, clean first, then after each stage.
        forwards: `[N]` passes spent by the driver, generation not counted.
        backwards: `[N]` gradients likewise.
    """

    adversarial: Tensor
    clean_texts: list[str]
    texts: list[str]
    clean_scores: list[float]
    scores: list[float]
    stage: list[int]
    waterfall: list[tuple[str, float]]
    forwards: Tensor
    backwards: Tensor


def run_ensemble(
    model: Any,
    pixels: Tensor,
    keys: Sequence[str],
    prompts: Sequence[str],
    references: Sequence[Sequence[str]],
    threat: ThreatModel,
    score: Score,
    *,
    settings: EnsembleSettings | None = None,
    driver: DriverSettings | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> EnsembleOutcome:
    """Attack captions or answers.

    Args:
        model: A VisionLanguageModel.
        pixels: Float32 `[N, 3, H, W]` in [0, 1], as the tower reads them.
        keys: One stable key an image.
        prompts: One an image.
        references: For each image its captions, or its most frequent answers first; a stage whose reference an image
            does not have leaves that image out.
        threat: The game.
        score: What the adversary wants small.
        settings: Stages, threshold, steps.
        driver: Tile, compaction; its search precision is the stages' business.
        progress: Called before each stage with its name and how many images are left.

    Raises:
        ShapeError: Not one key, prompt and list of references an image, or an image has no reference.
    """
    settings, driver = settings or EnsembleSettings(), driver or DriverSettings()
    count = len(pixels)
    if not len(keys) == len(prompts) == len(references) == count or not all(references):
        raise ShapeError(
            f"{count} images with {len(keys)} keys, {len(prompts)} prompts, {len(references)} lists of references.",
            "Give one of each an image, and at least one reference in each list.",
        )
    pixels = pixels.detach().cpu()
    clean_texts = said_of(model, pixels, prompts, driver, max_new_tokens=settings.max_new_tokens)
    clean_scores = [score(image, text) for image, text in enumerate(clean_texts)]
    nothing = torch.zeros(count, dtype=torch.int64)
    outcome = EnsembleOutcome(
        adversarial=pixels.clone(),
        clean_texts=clean_texts,
        texts=list(clean_texts),
        clean_scores=clean_scores,
        scores=list(clean_scores),
        stage=[-1] * count,
        waterfall=[("clean", _mean(clean_scores))],
        forwards=nothing,
        backwards=nothing.clone(),
    )
    found_by = [0] * count
    fast = torch.bfloat16 if torch.bfloat16 in model.precisions else torch.float32
    for number, stage in enumerate(settings.stages):
        wanted = [found_by[image] if stage.reference is None else stage.reference for image in range(count)]
        left = [
            image
            for image in range(count)
            if outcome.scores[image] >= settings.leave_below and wanted[image] < len(references[image])
        ]
        if progress:
            progress(stage.name, len(left))
        if left:
            rows = torch.tensor(left)
            # Written for all images, so that a row's length does not hang on who is left.
            lesson = model.write(
                prompts,
                [stage.target or own[min(place, len(own) - 1)] for own, place in zip(references, wanted, strict=True)],
            )
            objective = Unsay(model, lesson) if stage.target is None else Say(model, lesson)
            begin = {keys[image]: outcome.adversarial[image] for image in left} if stage.from_worst else {}
            attacked = run_attack(
                Climb(steps=settings.steps, begin=begin),
                objective.take(rows.to(objective.device)),
                pixels[rows],
                [keys[image] for image in left],
                threat,
                seed=0,  # nothing is drawn
                settings=replace(driver, search_dtype=torch.float32 if stage.exact else fast),
            )
            outcome.forwards[rows] += attacked.forwards
            outcome.backwards[rows] += attacked.backwards
            asked = [prompts[image] for image in left]
            texts = said_of(model, attacked.adversarial, asked, driver, max_new_tokens=settings.max_new_tokens)
            for image, text, point in zip(left, texts, attacked.adversarial, strict=True):
                value = score(image, text)
                if value < outcome.scores[image]:
                    outcome.adversarial[image], outcome.texts[image] = point, text
                    outcome.scores[image], outcome.stage[image] = value, number
                    found_by[image] = found_by[image] if stage.target is not None else wanted[image]
        outcome.waterfall.append((stage.name, _mean(outcome.scores)))
    return outcome


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / max(1, len(scores))
