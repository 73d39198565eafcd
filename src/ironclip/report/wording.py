"""How numbers and lists are written in a report."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from ironclip.evaluation.intervals import Interval

TIMES = "\N{MULTIPLICATION SIGN}"
MINUS = "\N{MINUS SIGN}"


def percent(value: float) -> str:
    """Write a share in percent with one decimal: `35.8`."""
    return f"{100 * value:.1f}"


def bounds(low: float, high: float) -> str:
    """Write an interval of shares in percent: `[32.9, 38.8]`."""
    return f"[{_signless(low)}, {_signless(high)}]"


def share(interval: Interval) -> str:
    """Write a share with its interval: `35.8 % [32.9, 38.8]`."""
    return f"{percent(interval.estimate)} % {bounds(interval.low, interval.high)}"


def points(difference: float) -> str:
    """Write a difference of shares in percentage points, always signed: `+23.0`."""
    text = f"{abs(100 * difference):.1f}"
    if text == "0.0":
        return "±0.0"
    return f"{'+' if difference > 0 else MINUS}{text}"


def p_value(p: float) -> str:
    """Write a p value: `p = 0.011`, `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def count(number: int) -> str:
    """Write a count with thousands apart: `10,000`."""
    return f"{number:,}"


def coverage(n: int, n_total: int) -> str:
    """Say how much of a data set was looked at: `1,000 of 10,000 images`, `all 400 images`."""
    return f"all {count(n)} images" if n == n_total else f"{count(n)} of {count(n_total)} images"


def listing(words: Sequence[str], last: str = "and") -> str:
    """Join words as in a sentence: `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def number_word(number: int) -> str:
    """Write small numbers as words."""
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return words[number] if number < len(words) else count(number)


def plural(number: int, noun: str) -> str:
    """Write a count with its noun: `one attack`, `two attacks`."""
    return f"{number_word(number)} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Write a time: `42 s`, `7 min`, `3.5 h`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"


def magnification(factor: float | Fraction) -> str:
    """Write a factor with two digits and the multiplication sign: 64 times, 2.5 times."""
    return f"{float(factor):.0f}{TIMES}" if factor >= 9.5 else f"{float(factor):.1f}{TIMES}"


def _signless(value: float) -> str:
    return percent(value).replace("-", MINUS) if round(1000 * value) else "0.0"
