"""Which edits an adversary on characters may make: none that write another English word.

Source: Chanakya et al., 2024, as LEAF's code states it (Abad Rocamora et al., NeurIPS 2025, arXiv:2506.03355). With
W(S) the known words of the lower-cased text S:

    none          every edit.
    no_new_words  W(S') is a subset of W(S): the rule as it is described.
    leaf          |W(S')| < |W(S)|: the rule as it is coded. It also refuses every edit outside known words, and accepts
                  one that destroys two words and makes one.

Deviations: the word list is ours and small (`english_words.txt`, common words written down for this project), tokens
are runs of letters and single other marks; the published code uses NLTK's tokenizer and word list.
"""

from __future__ import annotations

import functools
import re
from importlib import resources
from typing import Literal

Constraint = Literal["none", "no_new_words", "leaf"]

_TOKEN = re.compile(r"[A-Za-z]+|[^\sA-Za-z]")


@functools.cache
def english_words() -> frozenset[str]:
    """Return the bundled list of common English words, lower case."""
    text = resources.files("ironclip.attacks.text").joinpath("english_words.txt").read_text(encoding="utf-8")
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return frozenset(word for line in lines for word in line.split())


def known_words(text: str) -> frozenset[str]:
    """Return the distinct known words of a text."""
    return frozenset(_TOKEN.findall(text.lower())) & english_words()


def accepts(constraint: Constraint, before: str, after: str) -> bool:
    """Say whether the constraint lets one text become the other."""
    if constraint == "none":
        return True
    old, new = known_words(before), known_words(after)
    return new <= old if constraint == "no_new_words" else len(new) < len(old)
