"""VQA accuracy: how many of the people who were asked gave this answer, after both are written alike.

Source: Antol et al., ICCV 2015, arXiv:1505.00468, section 3, as the challenge computes it: the mean over the ten ways
of leaving one person out. Deviation: references are normalised as the answer is, and always; the challenge's program
leaves articles and numbers in references, and normalises nothing where all people agree.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence

from ironclip.errors import ValueRangeError

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMERALS = {"none": "0"} | {word: str(value) for value, word in enumerate(_NUMBERS)}
_ARTICLES = frozenset({"a", "an", "the"})
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_CONTRACTIONS = """ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
    he'd've he's how'd how'll how's isn't it'd've it'll let's ma'am might've mightn't mightn't've must've mustn't
    needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
    would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"""


def _without_apostrophes(word: str) -> list[str]:
    """Return the word with each choice of its apostrophes left out, at least one."""
    parts = word.split("'")
    joints = itertools.product(("", "'"), repeat=len(parts) - 1)
    spelt = ("".join(itertools.chain(*zip(parts, (*joint, ""), strict=True))) for joint in joints)
    return [other for other in spelt if other != word]


_SPELT_WHOLE = {other: word for word in _CONTRACTIONS.split() for other in _without_apostrophes(word)}


def normalise_answer(text: str) -> str:
    """Write an answer as all are written: no punctuation, articles or capitals; numbers to ten in digits.

    "The 2 dogs." gives "2 dogs", "Two" gives "2", "dont know" gives "don't know".
    """
    said = re.sub(r"[\n\t]", " ", text).strip()
    # A mark beside a space goes; one between two words parts them, unless the answer holds a number such as 1,000.
    joined = _THOUSANDS.search(said) is not None
    cleaned = said
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in said or f" {mark}" in said
        cleaned = cleaned.replace(mark, "" if beside_space or joined else " ")
    words = _FULL_STOP.sub("", cleaned).lower().split()
    numbered = (_NUMERALS.get(word, word) for word in words)
    return " ".join(_SPELT_WHOLE.get(word, word) for word in numbered if word not in _ARTICLES)


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """Return the accuracy of an answer, in [0, 1]: three people who agree make it right.

    Args:
        answer: What the model said.
        references: What people said, ten of them in VQAv2; at least two.

    Raises:
        ValueRangeError: Fewer than two references, of which none can be left out.
    """
    if len(references) < 2:
        raise ValueRangeError(
            f"{len(references)} reference answers.", "VQA accuracy leaves one out: give two or more, or compare text."
        )
    said = normalise_answer(answer)
    agrees = [normalise_answer(reference) == said for reference in references]
    total = sum(agrees)
    return math.fsum(min((total - own) / 3, 1) for own in agrees) / len(agrees)


def frequent_answers(references: Sequence[str]) -> list[str]:
    """Return what people said, each answer once, the most frequent first, equally frequent ones in the order given."""
    return [answer for answer, _ in Counter(references).most_common()]
