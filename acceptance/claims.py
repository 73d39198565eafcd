"""The words of acceptance: items measure figures, claims set bounds, the harness alone decides.

An item is a function that yields figures, one a claim; it never says PASS. Its claims, lines and thresholds stand
beside it as data, so that a claim which could not be measured is listed too, with its threshold, as NOT RUN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

T = TypeVar("T")


class Result(StrEnum):
    PASS = "PASS"
    FAIL = "FAIL"
    NOT_RUN = "NOT RUN"


class CannotRunError(Exception):
    """An item cannot be measured here (no ../shared, the short form): its claims are NOT RUN, with this reason."""


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What a figure must keep to; NaN keeps to nothing."""

    at_least: float = -math.inf
    at_most: float = math.inf
    below: float = math.inf
    unit: str = ""

    def holds(self, value: float) -> bool:
        return self.at_least <= value <= self.at_most and (value < self.below or math.isinf(self.below))

    def __str__(self) -> str:
        if self.at_least == self.at_most:
            return self.format(self.at_least)
        limits = (("≥", self.at_least), ("≤", self.at_most), ("<", self.below))
        return " and ".join(f"{sign} {self.format(limit)}" for sign, limit in limits if not math.isinf(limit))

    def format(self, value: float) -> str:
        return f"{value:.4g} {self.unit}".rstrip()


def at_least(value: float, unit: str = "") -> Bound:
    return Bound(at_least=value, unit=unit)


def at_most(value: float, unit: str = "") -> Bound:
    return Bound(at_most=value, unit=unit)


def below(value: float, unit: str = "") -> Bound:
    return Bound(below=value, unit=unit)


def exactly(value: float, unit: str = "") -> Bound:
    return Bound(at_least=value, at_most=value, unit=unit)


@dataclass(frozen=True)
class Claim:
    """One line of what must be shown.

    Attributes:
        name: Unique in its item.
        line: The words of the plan, shortened.
        bound: The threshold; it is never moved to fit a figure.
    """

    name: str
    line: str
    bound: Bound


@dataclass(frozen=True)
class Figure:
    """What an item found for one of its claims.

    Attributes:
        claim: Name of the claim.
        value: What the bound judges; None where it was not measured.
        shown: Text for readers in place of the bare value; the reason where it was not measured.
    """

    claim: str
    value: float | None
    shown: str = ""


@dataclass(frozen=True)
class Context:
    """What an item is given.

    Attributes:
        work: A folder of the item's own, for runs that go on where they stopped; it belongs to the item's key, so
            what lies there was made by the same source from the same data.
        short: The form for CI: small versions, nothing that is timed.
    """

    work: Path
    short: bool = False

    def pick(self, full: T, short: T) -> T:
        """Return the size that the form asks for."""
        return short if self.short else full


@dataclass(frozen=True)
class Item:
    """Some claims that are measured together.

    Attributes:
        name: As `--only` selects it.
        claims: In the order of the table.
        modules: Dotted names of the code that is measured, with the entries of registries, which no import names.
        files: Recipes, data and weights, as paths or patterns relative to the repository; where one is missing the
            item is NOT RUN.
        state: Gives anything else that the figures hang on.
        measure: Yields a figure a claim.
    """

    name: str
    claims: tuple[Claim, ...]
    modules: tuple[str, ...]
    files: tuple[str, ...]
    state: Callable[[], str] | None
    measure: Callable[[Context], Iterator[Figure]]


def item(
    name: str,
    *,
    claims: Sequence[Claim],
    modules: Sequence[str],
    files: Sequence[str] = (),
    state: Callable[[], str] | None = None,
) -> Callable[[Callable[[Context], Iterator[Figure]]], Item]:
    """Make an item of a function; see `Item`. The function's own module always counts among `modules`."""

    def enter(measure: Callable[[Context], Iterator[Figure]]) -> Item:
        return Item(name, tuple(claims), (measure.__module__, *modules), tuple(files), state, measure)

    return enter
