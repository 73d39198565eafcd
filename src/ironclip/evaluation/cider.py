"""CIDEr-D: how much a caption says of what people say of the image and of few other images.

Source: Vedantam et al., CVPR 2015, arXiv:1411.5726, section 7 (CIDEr-D), with the length of a caption counted in pairs
of words, as the published scorer does; the difference of two lengths is the same unless one has no word.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ironclip.errors import ShapeError, ValueRangeError

CIDER = "cider-d, n = 4, sigma = 6, times 10"
_LONGEST = 4
_SIGMA = 6.0

Tokens = Sequence[str]
Phrase = tuple[str, ...]


@dataclass(frozen=True)
class _Weighed:
    """A caption as weights of its phrases, one mapping a length 1 to 4, with their norms."""

    weights: tuple[dict[Phrase, float], ...]
    norms: tuple[float, ...]
    pairs: int


class CiderD:
    """The scorer of one set of images: the rarity of a phrase is taken from their references.

    So the set is part of the metric: scores of two sets do not compare, and a clean and an attacked score must come
    from one scorer.

    Args:
        references: For each image its captions, cut into words (`caption_tokens`).

    Raises:
        ValueRangeError: Fewer than two images, of which no phrase is rare; or an image without a reference.
    """

    def __init__(self, references: Sequence[Sequence[Tokens]]) -> None:
        if len(references) < 2:
            raise ValueRangeError(
                f"CIDEr over {len(references)} images: no phrase is rare.", "Score two images or more together."
            )
        if empty := [place for place, own in enumerate(references) if not own]:
            raise ValueRangeError(f"image {empty[0]} has no reference caption.", "Leave it out, or give one.")
        counted = [[_phrases(caption) for caption in own] for own in references]
        self._images_with = Counter(
            phrase for own in counted for phrase in {phrase for caption in own for phrase in caption}
        )
        self._log_images = math.log(len(references))
        self._references = [[self._weigh(caption) for caption in own] for own in counted]

    def __len__(self) -> int:
        return len(self._references)

    def score(self, image: int, candidate: Tokens) -> float:
        """Score one caption of one image, from 0 to 10; published tables show 100 times the mean over images.

        Args:
            image: Its place among the references.
            candidate: The caption's words.
        """
        said = self._weigh(_phrases(candidate))
        own = self._references[image]
        return 10 * sum(_likeness(said, reference) for reference in own) / len(own)

    def mean(self, candidates: Sequence[Tokens]) -> float:
        """Score a caption of every image and return the mean, from 0 to 10.

        Raises:
            ShapeError: Not one caption an image.
        """
        if len(candidates) != len(self):
            raise ShapeError(f"{len(candidates)} captions for {len(self)} images.", "Give one caption an image.")
        return math.fsum(self.score(image, said) for image, said in enumerate(candidates)) / len(self)

    def _weigh(self, counts: Counter[Phrase]) -> _Weighed:
        weights: tuple[dict[Phrase, float], ...] = tuple({} for _ in range(_LONGEST))
        for phrase, count in counts.items():
            rarity = self._log_images - math.log(max(1, self._images_with[phrase]))
            weights[len(phrase) - 1][phrase] = count * rarity
        norms = tuple(math.sqrt(math.fsum(weight**2 for weight in part.values())) for part in weights)
        return _Weighed(weights, norms, sum(count for phrase, count in counts.items() if len(phrase) == 2))


def _phrases(tokens: Tokens) -> Counter[Phrase]:
    """Count the runs of one to four words."""
    runs = (tuple(tokens[at : at + size]) for size in range(1, _LONGEST + 1) for at in range(len(tokens) - size + 1))
    return Counter(runs)


def _likeness(said: _Weighed, reference: _Weighed) -> float:
    """Return the mean cosine over the four lengths; a phrase said too often does not count more, nor does length."""
    total = 0.0
    for size in range(_LONGEST):
        own, other = said.weights[size], reference.weights[size]
        norm = said.norms[size] * reference.norms[size]
        if norm:
            shared = math.fsum(
                min(weight, other[phrase]) * other[phrase] for phrase, weight in own.items() if phrase in other
            )
            total += shared / norm
    gap = said.pairs - reference.pairs
    return total / _LONGEST * math.exp(-(gap**2) / (2 * _SIGMA**2))
