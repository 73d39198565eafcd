"""The metrics of language: CIDEr-D against its published scorer, VQA and POPE on worked examples."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Sequence

from acceptance import named_tests
from acceptance.claims import SHARED, CannotRunError, Claim, Context, Figure, at_least, at_most, exactly, item
from ironclip.data.order import limit
from ironclip.data.sources import open_dataset
from ironclip.evaluation.caption_tokens import caption_tokens
from ironclip.evaluation.cider import CiderD

FLICKR = f"wds:{SHARED}/data/flickr8k?split=test&resize=32"
FLICKR_FILES = ("../shared/data/flickr8k/test-*.tar.gz",)
PAIRS = 200
SCORER = "pycocoevalcap.cider.cider"
WORKED = {"vqa": "tests/evaluation/test_vqa.py", "pope": "tests/evaluation/test_pope.py"}

Tokens = Sequence[str]


def recorded_pairs(count: int) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Return so many captions of Flickr8k's test images, each with the other captions of its image, cut into words."""
    data = limit(open_dataset(FLICKR, strict=True), count)
    captions = [[caption_tokens(text) for text in data[at].captions] for at in range(len(data))]
    return [own[0] for own in captions], [own[1:] for own in captions]


def our_scores(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[float]:
    """Score each candidate as IronCLIP does."""
    scorer = CiderD(references)
    return [scorer.score(place, said) for place, said in enumerate(candidates)]


def their_scores(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[float]:
    """Score each candidate with the published program, on the same words.

    Raises:
        CannotRunError: It is not installed.
    """
    if importlib.util.find_spec(SCORER.partition(".")[0]) is None:
        raise CannotRunError("pycocoevalcap is not installed")
    scorer = importlib.import_module(SCORER).Cider()
    said = {place: [" ".join(words)] for place, words in enumerate(candidates)}
    wanted = {place: [" ".join(words) for words in own] for place, own in enumerate(references)}
    _, scores = scorer.compute_score(wanted, said)
    return [float(score) for score in scores]


def largest_gap(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the largest difference of two lists of scores."""
    return max(abs(one - other) for one, other in zip(ours, theirs, strict=True))


@item(
    "cider",
    claims=(
        Claim("pairs", "recorded captions with their references", at_least(PAIRS)),
        Claim("gap", "CIDEr-D against pycocoevalcap's scorer on the same words: largest difference", at_most(1e-6)),
    ),
    modules=("ironclip.evaluation.cider", "ironclip.evaluation.caption_tokens"),
    files=FLICKR_FILES,
    state=lambda: str(importlib.util.find_spec(SCORER.partition(".")[0]) is not None),
)
def cider(context: Context) -> Iterator[Figure]:
    said, references = recorded_pairs(PAIRS)
    yield Figure("pairs", len(said))
    yield Figure("gap", largest_gap(our_scores(said, references), their_scores(said, references)))


@item(
    "worked_examples",
    claims=[
        claim
        for name in WORKED
        for claim in (
            Claim(f"{name} cases", f"{name}: examples worked by hand", at_least(1)),
            Claim(f"{name} failed", "… that come out otherwise", exactly(0)),
        )
    ],
    modules=("ironclip.evaluation.vqa", "ironclip.evaluation.pope", "acceptance.named_tests"),
    files=tuple(WORKED.values()),
)
def worked_examples(context: Context) -> Iterator[Figure]:
    for name, path in WORKED.items():
        found = named_tests.run([path])
        yield Figure(f"{name} cases", len(found))
        yield Figure(f"{name} failed", sum(case.verdict != "passed" for case in found))
