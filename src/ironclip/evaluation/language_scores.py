"""Scores of one text of one image, as an attack on captions or answers wants them: `(image, text) -> float`.

All belong to a fixed list of images, since CIDEr's weights come from the whole list: clean and attacked texts are to
be scored by the same one. An attack keeps the text of the lowest score, so a score must be what the table shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ironclip.evaluation.caption_tokens import caption_tokens
from ironclip.evaluation.cider import CiderD
from ironclip.evaluation.vqa import normalise_answer, vqa_accuracy

Score = Callable[[int, str], float]


def caption_score(references: Sequence[Sequence[str]]) -> Score:
    """Score captions by CIDEr-D times 100, as tables show it.

    Args:
        references: For each image its captions, as people wrote them.

    Raises:
        ValueRangeError: Fewer than two images, or one without a caption.
    """
    scorer = CiderD([[caption_tokens(caption) for caption in own] for own in references])
    return lambda image, text: 100 * scorer.score(image, caption_tokens(text))


def answer_score(references: Sequence[Sequence[str]]) -> Score:
    """Score answers by VQA accuracy, in [0, 1].

    Args:
        references: For each image what people answered, two or more.
    """
    return lambda image, text: vqa_accuracy(text, references[image])


def exact_score(references: Sequence[Sequence[str]]) -> Score:
    """Score answers by whether they are the one right answer, both written alike: 0 or 1.

    Args:
        references: For each image the answer.
    """
    right = [{normalise_answer(text) for text in own} for own in references]
    return lambda image, text: float(normalise_answer(text) in right[image])
