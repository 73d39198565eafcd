"""Each side in its own process, with its own memory."""

from __future__ import annotations

import sys

import pytest
from benchmarks.sides import Cost, SideError, SideProcess

pytestmark = pytest.mark.slow  # each process imports torch anew

MIB = 2**20


class Holds:
    """Holds so many bytes while it runs, and says so."""

    def __init__(self, size: int, operations: int = 0) -> None:
        self.size, self.count = size, operations

    def run(self) -> int:
        return len(bytearray(self.size))

    def operations(self) -> int:
        return self.count


class Breaks(Holds):
    def run(self) -> int:
        raise ValueError("no such class")


class Dies(Holds):
    def run(self) -> int:
        sys.exit(9)


def test_each_process_has_its_own_peak():
    with SideProcess("large", Holds, 300 * MIB, 7) as large, SideProcess("small", Holds, MIB) as small:
        assert large.turn() > 0
        assert small.turn() > 0
        assert large.memory() - small.memory() == pytest.approx(299 * MIB, rel=0.1)
        assert large.cost() == Cost(large.memory(), 7)


@pytest.mark.parametrize(("side", "words"), [(Breaks, "this side: ValueError: no such class"), (Dies, "ended with 9")])
def test_a_side_that_breaks_down_says_why(side, words):
    with SideProcess("this side", side, MIB) as broken, pytest.raises(SideError, match=words):
        broken.turn()
