"""Words of a caption as the Penn Treebank cuts them, which is what caption metrics count.

Published captions are cut by a Java program (Stanford's PTBTokenizer, lower-cased, punctuation dropped). This is the
part of its rules that captions meet: clitics, hyphens, numbers, abbreviations, slashes, quotes, brackets. Deviations:
no addresses of web and mail, emoticons, dates or XML; a score that is compared with a published one carries
`TOKENIZER`. Source: Marcus et al., Computational Linguistics 1993; Chen et al., 2015, arXiv:1504.00325, section 4.1.
"""

from __future__ import annotations

import re

TOKENIZER = "ptb-like 1"
"""Goes with every score; a rule that changes, changes it."""

_PART = r"(?:\d+(?:[.,:]\d+)+|\w+)"
_TOKEN = re.compile(
    rf"""(?:[A-Za-z]\.){{2,}}(?!\w)               # u.s., e.g.
    | (?i:mr|mrs|ms|dr|st|jr|sr|vs|etc|inc|co|no|mt|ave)\.(?=\s+[\w(])
    | (?<!\w)'\d\ds?(?!\w)                        # '80s
    | [A-Z]+(?:&[A-Z]+)+                           # AT&T; in small letters the sign stands alone
    | {_PART}(?:['/-]{_PART})*
    | \.{{2,}} | -{{2,}} | \S""",
    re.VERBOSE,
)
_CLITIC = re.compile(r"(.+?)(n't|'(?:s|m|d|ll|re|ve))", re.IGNORECASE)
_TWO_WORDS = {
    "cannot": ("can", "not"),
    "gimme": ("gim", "me"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "lemme": ("lem", "me"),
    "wanna": ("wan", "na"),
}
_PUNCTUATION = frozenset("'\"`‘’“”«».?!,:;-–—…")  # noqa: RUF001  # marks that captions hold
# The published list of what is dropped names brackets in capitals, after all has been made small: brackets stay.
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}


def caption_tokens(text: str) -> list[str]:
    """Cut a caption into lower-case words without punctuation.

    "The dog's ball isn't red." gives the, dog, 's, ball, is, n't, red.
    """
    words: list[str] = []
    for match in _TOKEN.finditer(text.replace("’", "'")):  # noqa: RUF001  # the typographic apostrophe
        for word in _apart(match[0].lower()):
            if not set(word) <= _PUNCTUATION:
                words.append(_BRACKETS.get(word, word).replace("/", r"\/"))
    return words


def _apart(word: str) -> tuple[str, ...]:
    """Cut clitics off the end of a word, and words that are two."""
    if match := _CLITIC.fullmatch(word):
        return (*_apart(match[1]), match[2])
    return _TWO_WORDS.get(word, (word,))
