"""Evaluate what stands on a tower: captions, answers, and sentences put into a model's mouth, image by image.

Source: evaluation plan 7.1. Images are brought to what the tower reads before the adversary acts, as published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from ironclip.attacks.apgd import APGD
from ironclip.attacks.driver import DriverSettings, run_attack
from ironclip.attacks.vlm.ensemble import ANSWER_STAGES, CAPTION_STAGES, EnsembleSettings, run_ensemble
from ironclip.attacks.vlm.objectives import LeavePatches, Unsay
from ironclip.attacks.vlm.sentence import run_sentence
from ironclip.attacks.vlm.speech import Match, said_of
from ironclip.data.prompted import Asked, PromptedImage, open_prompted
from ironclip.errors import ConfigError, DataError, UnreadableSampleError
from ironclip.evaluation.caption_tokens import TOKENIZER
from ironclip.evaluation.cider import CIDER
from ironclip.evaluation.language_scores import Score, answer_score, caption_score, exact_score
from ironclip.evaluation.records import AttackInfo
from ironclip.evaluation.task_run import (
    TaskProgress,
    TaskRequest,
    chunks_of,
    driver_for,
    finish,
    kept_images,
    open_store,
    probe_rows,
)
from ironclip.evaluation.task_store import TaskStore
from ironclip.evaluation.vqa import frequent_answers
from ironclip.models.vlm import CAPTION_PROMPT, VisionLanguageModel
from ironclip.models.vlm_sources import load_vlm, vlm_identity

NEW_TOKENS = {"caption": 20, "answer": 5, "targeted": 20}
LEAVE_BELOW = {"caption": 10.0, "answer": 0.01}
STEPS = {"ensemble": 100, "patches": 300, "sentence": 500}
PATCH_RESTARTS = 3


@dataclass(frozen=True, kw_only=True)
class LanguageRequest(TaskRequest):
    """What to ask a vision-language model, and how to lead it astray.

    Attributes:
        task: "caption", "answer", or "targeted": make it say `target`.
        tower: Source of the CLIP whose image tower takes the place of the model's own.
        resolution: What that tower reads, where it is not what a LLaVA's own reads: a promise that this is meant.
        attack: "ensemble" (against the references, then a look at what is said) or "patches" (against the patch
            tokens: no label, no language model); in a targeted game there is one attack, "sentence".
        target: The sentence of a targeted game.
        steps: Gradient steps a search; as published unless given.
        leave_below: The ensemble leaves an image when its score falls below this: 10 (captions of COCO), 2 (of
            Flickr30k), 0.01 (answers).
        prompt: What asks for a caption.
    """

    task: Literal["caption", "answer", "targeted"]
    tower: str | None = None
    resolution: int | None = None
    attack: Literal["ensemble", "patches", "sentence"] = "ensemble"
    target: str = ""
    steps: int | None = None
    leave_below: float | None = None
    prompt: str = CAPTION_PROMPT

    def __post_init__(self) -> None:
        super().__post_init__()
        targeted = self.task == "targeted"
        if targeted != (self.attack == "sentence") or targeted != (self.threat.goal == "targeted"):
            raise ConfigError(
                f'task "{self.task}" with attack "{self.attack}" in a {self.threat.goal} game.',
                'The task "targeted" goes with attack "sentence" and goal "targeted", the others with neither.',
            )
        if targeted != bool(self.target.strip()):
            raise ConfigError(
                f'task "{self.task}" with the target "{self.target}".', "A targeted game, and no other, has a sentence."
            )

    @property
    def settings(self) -> dict[str, Any]:
        """What of this decides figures beside the attack."""
        metric = {"caption": f"{CIDER}; {TOKENIZER}", "answer": "VQA accuracy", "targeted": "match"}[self.task]
        return {"prompt": self.prompt, "metric": metric, "new_tokens": NEW_TOKENS[self.task]}

    @property
    def attack_info(self) -> AttackInfo:
        """Name and settings of the attack."""
        settings: dict[str, Any] = {"steps": self.steps or STEPS[self.attack]}
        if self.attack == "ensemble":
            settings["leave_below"] = LEAVE_BELOW[self.task] if self.leave_below is None else self.leave_below
        elif self.attack == "patches":
            settings["restarts"] = PATCH_RESTARTS
        else:
            settings["target"] = self.target
        return AttackInfo(name=self.attack, settings=settings)


def evaluate_language(
    request: LanguageRequest,
    *,
    model: VisionLanguageModel | None = None,
    progress: Callable[[TaskProgress], None] | None = None,
) -> TaskStore:
    """Let a model speak about images, attack them, let it speak again, and store a row an image.

    Args:
        request: The whole of it.
        model: An adapter of the caller's own in place of what `request.model` and `tower` name.
        progress: Called before each stage and after each chunk.

    Raises:
        ConfigError: A source is not understood, or the tower does not fit.
        DataError: Data are missing, or an image cannot be read: such a set is scored as a whole.
        ResumeError: `out` holds another run.
    """
    if model is None:
        model = load_vlm(request.model, tower=request.tower, resolution=request.resolution, device=request.device)
    asked: Asked = "question" if request.task == "answer" else "caption"
    data = open_prompted(request.source, asked, prompt=request.prompt).limited(request.limit)
    try:
        images = [data[position] for position in range(len(data))]
    except UnreadableSampleError as error:
        raise DataError(f"sample {error.key} cannot be read: {error.reason}", "Mend it, or remove it.") from None
    if len(images) < 2:
        raise DataError(f"{request.data} has {len(images)} images.", "Give two or more: such a set is scored as one.")
    first = [images[row] for row in probe_rows(len(images))]
    lesson = model.write([image.prompt for image in first], [image.references[0] for image in first])
    pixels = _prepared(model, first)
    driver, invariance = driver_for(request, Unsay(model, lesson), pixels)
    store = open_store(
        request,
        request.task,
        identity=vlm_identity(model),
        model_name=model.name,
        fingerprint=data.fingerprint,
        keys=data.keys,
        size=(pixels.shape[-2], pixels.shape[-1]),
        attack=request.attack_info,
        settings=request.settings,
        driver=driver,
        invariance=invariance,
    )
    work = _Work(request, model, images, driver)
    done, finished = store.done_chunks(), 0
    for chunk, positions in chunks_of(data.keys):
        if chunk not in done:
            keys, clean = [data.keys[at] for at in positions], _prepared(model, [images[at] for at in positions])

            def tell(stage: str, before: int = finished) -> None:
                if progress:
                    progress(TaskProgress(before, len(images), stage))

            rows, attacked = work.attack(positions, keys, clean, tell)
            store.write_chunk(chunk, rows, kept_images(request, data.keys, keys, clean, attacked))
        finished += len(positions)
        if progress:
            progress(TaskProgress(finished, len(images), "stored"))
    return finish(store)


@dataclass
class _Work:
    """A run under way: how a chunk becomes rows."""

    request: LanguageRequest
    model: VisionLanguageModel
    images: Sequence[PromptedImage]
    driver: DriverSettings

    @cached_property
    def score(self) -> Score:
        """What the adversary wants small, over the whole set."""
        references = [image.references for image in self.images]
        if self.request.task == "answer":
            return exact_score(references) if all(len(own) == 1 for own in references) else answer_score(references)
        return caption_score(references)

    def attack(
        self, positions: Sequence[int], keys: Sequence[str], clean: Tensor, tell: Callable[[str], None]
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """Attack the images of a chunk; returns their rows and the attacked images `[N, 3, H, W]`."""
        own = [self.images[position] for position in positions]
        if self.request.task == "targeted":
            return self._sentence(own, keys, clean, tell)
        if self.request.attack == "patches":
            return self._patches(own, positions, keys, clean, tell)
        return self._ensemble(own, positions, keys, clean, tell)

    def _ensemble(
        self,
        own: Sequence[PromptedImage],
        positions: Sequence[int],
        keys: Sequence[str],
        clean: Tensor,
        tell: Callable[[str], None],
    ) -> tuple[list[dict[str, Any]], Tensor]:
        settings = self.request.attack_info.settings
        stages = ANSWER_STAGES if self.request.task == "answer" else CAPTION_STAGES
        found = run_ensemble(
            self.model,
            clean,
            keys,
            [image.prompt for image in own],
            [frequent_answers(image.references) for image in own],
            self.request.threat,
            lambda row, text: self.score(positions[row], text),
            settings=EnsembleSettings(
                stages=stages,
                leave_below=settings["leave_below"],
                max_new_tokens=NEW_TOKENS[self.request.task],
                steps=settings["steps"],
            ),
            driver=self.driver,
            progress=lambda stage, left: tell(f"{stage}, {left} images left"),
        )
        names = ["clean", *(stage.name for stage in stages)]
        rows = [
            {
                **row,
                "text_clean": found.clean_texts[at],
                "text_attacked": found.texts[at],
                "score_clean": found.clean_scores[at],
                "score_attacked": found.scores[at],
                "stage": names[found.stage[at] + 1],
            }
            for at, row in enumerate(self._shared(own, clean, found.adversarial, found.forwards, found.backwards))
        ]
        return rows, found.adversarial

    def _patches(
        self,
        own: Sequence[PromptedImage],
        positions: Sequence[int],
        keys: Sequence[str],
        clean: Tensor,
        tell: Callable[[str], None],
    ) -> tuple[list[dict[str, Any]], Tensor]:
        attack = APGD(steps=self.request.attack_info.settings["steps"], restarts=PATCH_RESTARTS)
        tell("patch tokens")
        found = run_attack(
            attack,
            LeavePatches.of(self.model, clean),
            clean,
            keys,
            self.request.threat,
            seed=self.request.seed,
            settings=self.driver,
        )
        prompts = [image.prompt for image in own]
        before, after = (
            said_of(self.model, points, prompts, self.driver, max_new_tokens=NEW_TOKENS[self.request.task])
            for points in (clean, found.adversarial)
        )
        rows = [
            {
                **row,
                "text_clean": before[at],
                "text_attacked": after[at],
                "score_clean": self.score(positions[at], before[at]),
                "score_attacked": self.score(positions[at], after[at]),
                "stage": "patch tokens",
            }
            for at, row in enumerate(self._shared(own, clean, found.adversarial, found.forwards, found.backwards))
        ]
        return rows, found.adversarial

    def _sentence(
        self, own: Sequence[PromptedImage], keys: Sequence[str], clean: Tensor, tell: Callable[[str], None]
    ) -> tuple[list[dict[str, Any]], Tensor]:
        found = run_sentence(
            self.model,
            clean,
            keys,
            [image.prompt for image in own],
            self.request.target,
            self.request.threat,
            steps=self.request.attack_info.settings["steps"],
            max_new_tokens=NEW_TOKENS["targeted"],
            driver=self.driver,
            progress=lambda fallen, left: tell(f"{fallen} say it, {left} images left"),
        )
        search = found.search
        rows = []
        for at, row in enumerate(self._shared(own, clean, search.adversarial, search.forwards, search.backwards)):
            del row["references"]
            spoken = (("clean", found.clean), ("attacked", found.attacked), ("rounded", found.rounded))
            texts = {f"text_{when}": said.texts[at] for when, said in spoken}
            matches = {name: value for when, said in spoken for name, value in _matched(when, said.matches[at])}
            rows.append(
                {
                    **row,
                    "target": self.request.target,
                    **texts,
                    **matches,
                    "iterations": int(search.iterations[at]),
                }
            )
        return rows, search.adversarial

    def _shared(
        self, own: Sequence[PromptedImage], clean: Tensor, attacked: Tensor, forwards: Tensor, backwards: Tensor
    ) -> Iterator[dict[str, Any]]:
        norms = self.request.threat.distance(attacked, clean).tolist()
        for at, image in enumerate(own):
            yield {
                "sample_id": image.key,
                "image_id": image.key,
                "norm": norms[at],
                "forwards": int(forwards[at]),
                "backwards": int(backwards[at]),
                "prompt": image.prompt,
                "references": list(image.references),
            }


def _matched(when: str, match: Match) -> Iterator[tuple[str, bool]]:
    for how in ("contains", "begins", "equals"):
        yield f"{when}_{how}", getattr(match, how)


def _prepared(model: VisionLanguageModel, images: Sequence[PromptedImage]) -> Tensor:
    """Bring images to what the tower reads, float32 `[N, 3, R, R]`."""
    with torch.no_grad():
        return torch.cat([model.preprocessing.resize(image.pixels[None]) for image in images])
