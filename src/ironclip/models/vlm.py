"""Vision-language models: pixels in [0, 1] and a prompt in, the likelihood of an answer or an answer out.

What stands on a CLIP tower (a captioner, an answerer) is attacked and scored through these functions alone; an adapter
(`llava.py`, `tiny_vlm.py`) is one subclass. Preprocessing lies inside, as in `CLIPModel`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ironclip.errors import ConfigError, ShapeError, ValueRangeError
from ironclip.models.preprocessing import Preprocessing

CAPTION_PROMPT = "Provide a short caption for this image."
"""Asked for a caption; the wording of the published protocol (evaluation plan 7.1), in training as in evaluation."""

IGNORED = -100
"""What stands in `Lesson.targets` where nothing is to be said."""


@dataclass(frozen=True)
class Lesson:
    """Prompts with the answers that are to follow, as the decoder reads them; one row an image.

    All rows have one length. It is fixed when the lesson is written, so that a row is computed alike whatever rows
    stand beside it.

    Attributes:
        ids: `[B, L]` int64, prompt, answer, end, padding; the image's place among them is the adapter's business.
        targets: `[B, L]` int64: at each place of the answer and its end the id that belongs there, `IGNORED` elsewhere.
    """

    ids: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Tensor) -> Lesson:
        """Return the given rows, in that order (repeats allowed)."""
        return Lesson(self.ids[rows], self.targets[rows])


def write_lesson(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], *, padding: int, device: torch.device
) -> Lesson:
    """Join prompts and answers (token ids, the end of the text included) to rows of one length.

    Raises:
        ShapeError: Not one answer a prompt.
        ValueRangeError: An answer is empty.
    """
    check_texts(len(prompts), answers=answers)
    if empty := [row for row, answer in enumerate(answers) if not answer]:
        raise ValueRangeError(f"answer {empty[0]} is empty.", "Give at least one word that is to be said.")
    length = max((len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True)), default=0)
    ids = torch.full((len(prompts), length), padding, dtype=torch.int64)
    targets = torch.full_like(ids, IGNORED)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor([*prompt, *answer])
        targets[row, len(prompt) : end] = torch.tensor(answer)
    return Lesson(ids.to(device), targets.to(device))


def check_texts(count: int, **texts: Sequence[object]) -> None:
    """Refuse texts that are not one a row.

    Raises:
        ShapeError: Names the kind of text.
    """
    for name, given in texts.items():
        if isinstance(given, str) or len(given) != count:
            number = "a single text" if isinstance(given, str) else str(len(given))
            raise ShapeError(f"{name}: {number} for {count} images.", "Give a list with one text an image.")


class VisionLanguageModel(nn.Module, ABC):
    """A model that reads an image and a prompt, and answers in words.

    Attributes:
        name: What it is and which tower it stands on; stored with every result.
        preprocessing: Between pixels and tower.
    """

    name: str
    preprocessing: Preprocessing

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where pixels have to lie."""

    @property
    @abstractmethod
    def input_resolution(self) -> int:
        """Side of the square that the tower reads, in pixels."""

    @abstractmethod
    def write(self, prompts: Sequence[str], targets: Sequence[str]) -> Lesson:
        """Write prompts, one an image, and the answers that are to follow, in the model's own template and tokens.

        Raises:
            ShapeError: Not one answer a prompt.
            ValueRangeError: An answer is empty.
        """

    @abstractmethod
    def predict(self, pixels: Tensor, lesson: Lesson) -> Tensor:
        """Return float32 logits `[B, L, V]`: at each place of the lesson, what should stand there (teacher forcing).

        The first place has nothing before it to be predicted from and is never a target.
        """

    @abstractmethod
    def generate(self, pixels: Tensor, prompts: Sequence[str], *, max_new_tokens: int = 20) -> list[str]:
        """Answer greedily: at each place the likeliest token, up to the end or `max_new_tokens`.

        Args:
            pixels: Float `[B, 3, H, W]` in [0, 1].
            prompts: One an image.
            max_new_tokens: 20 for captions, 5 for short answers, as published.

        Raises:
            ShapeError: Not one prompt an image.
        """

    @abstractmethod
    def visual_tokens(self, pixels: Tensor) -> Tensor:
        """Return what the tower hands to the language model before it is projected, `[B, P, W]`."""

    def loss(self, pixels: Tensor, prompts: Sequence[str], targets: Sequence[str]) -> Tensor:
        """Return how unlikely the answers are: `[B]`, the mean over a row's answer of minus the log-probability.

        Args:
            pixels: Float `[B, 3, H, W]` in [0, 1]; differentiable.
            prompts: One an image.
            targets: One an image; the end of the text counts as its last token.

        Raises:
            ShapeError: Not one prompt and one answer an image.
            ValueRangeError: An answer is empty, or pixels are not in [0, 1].
        """
        check_texts(len(pixels), prompts=prompts, targets=targets)
        return self.judge(pixels, self.write(prompts, targets))[0]

    def judge(self, pixels: Tensor, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """Return the loss of a lesson, `[B]` and with graph, and its `answer_margin`, `[B]` and without."""
        logits = self.predict(pixels, lesson)
        return answer_loss(logits, lesson), answer_margin(logits.detach(), lesson)

    @contextmanager
    def computing(self, dtype: torch.dtype) -> Iterator[None]:
        """Run passes inside the block in another precision; only float32 unless a subclass can do more.

        Raises:
            ConfigError: A precision that this model does not offer.
        """
        if dtype not in self.precisions:
            raise ConfigError(f"{type(self).__name__} does not compute in {dtype}.", "Search in float32.")
        yield

    @property
    def precisions(self) -> frozenset[torch.dtype]:
        """The precisions that `computing` takes."""
        return frozenset({torch.float32})


def answer_loss(logits: Tensor, lesson: Lesson) -> Tensor:
    """Return the mean over each row's answer of minus the log-probability, `[B]`, from logits `[B, L, V]`."""
    each = F.cross_entropy(logits.transpose(1, 2), lesson.targets, ignore_index=IGNORED, reduction="none")
    return each.sum(dim=1) / (lesson.targets != IGNORED).sum(dim=1)


def answer_margin(logits: Tensor, lesson: Lesson) -> Tensor:
    """Return by how much the answer's own token is the likeliest, at the answer's weakest place, `[B]`.

    Where it is positive the greedy answer begins with the target, since greedy decoding takes the same tokens one by
    one. The end of the text does not count: what follows the target may be anything.

    Args:
        logits: `[B, L, V]` from `predict`.
        lesson: Its lesson.
    """
    wanted = lesson.targets != IGNORED
    last = wanted.shape[1] - 1 - wanted.flip(1).int().argmax(dim=1)
    wanted = wanted.scatter(1, last[:, None], False)
    index = lesson.targets.clamp(min=0)[:, :, None]
    own = logits.gather(2, index).squeeze(2)
    rival = logits.scatter(2, index, -torch.inf).amax(dim=2)
    return (own - rival).masked_fill(~wanted, torch.inf).amin(dim=1)
