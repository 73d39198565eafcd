"""Each side of a comparison in a process of its own: its peak memory is its own, and nothing of it hides the other's.

The processes take turns: while one computes, the others wait for a word.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Protocol, Self

from ironclip.benchmarking.measuring import timed
from ironclip.machine import peak_memory


class SideError(RuntimeError):
    """A side broke down, or its process had no memory left."""


class Side(Protocol):
    """What is timed, and what it costs on paper."""

    def run(self) -> object: ...

    def operations(self) -> int: ...


@dataclass(frozen=True)
class Cost:
    """What a side came to.

    Attributes:
        memory: The most that its process held at a time, bytes.
        operations: Of one run, counted.
    """

    memory: int
    operations: int


class SideProcess:
    """A process that builds a side and runs it when told; a context, which ends it.

    Args:
        name: For errors.
        build: A function of a module, with arguments that can be sent to a process.
        arguments: Of it.
        device: Where the side computes.
    """

    def __init__(self, name: str, build: Callable[..., Side], *arguments: object, device: str = "cpu") -> None:
        self.name = name
        # Not forked: a copy of this process would begin with its memory.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, build, arguments, device), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.join()

    def turn(self) -> float:
        """Run once; return seconds.

        Raises:
            SideError: It broke down; says why.
        """
        return float(self._ask("turn"))

    def memory(self) -> int:
        """Return the most that it has held so far, bytes."""
        return int(self._ask("memory"))

    def cost(self) -> Cost:
        """Return memory and operations; counting comes last, since it may run the side once more."""
        return Cost(self.memory(), int(self._ask("operations")))

    def _ask(self, word: str) -> float:
        try:
            self._pipe.send(word)
            answer = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join()
            raise SideError(
                f"the process of {self.name} ended with {self._process.exitcode}; -9 means that it had no memory left."
            ) from None
        if isinstance(answer, str):
            raise SideError(f"{self.name}: {answer}")
        return float(answer)


def _serve(pipe: Connection, build: Callable[..., Side], arguments: tuple[object, ...], device: str) -> None:
    try:
        side = build(*arguments)
        answers: dict[str, Callable[[], float]] = {
            "turn": lambda: timed(side.run, device),
            "memory": lambda: peak_memory(device),
            "operations": side.operations,
        }
        while True:
            pipe.send(answers[pipe.recv()]())
    except EOFError:
        return
    except (RuntimeError, ValueError, MemoryError, OSError) as error:
        pipe.send(f"{type(error).__name__}: {error}")
