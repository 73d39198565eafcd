"""SIGTERM and Ctrl-C as something that a loop can look at between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_signals() -> Iterator[list[BaseException]]:
    """Turn SIGTERM and Ctrl-C into an exception that the loop raises after its step; handlers are put back.

    A second Ctrl-C is not waited for. Outside the main thread nothing is caught.
    """
    stopped: list[BaseException] = []
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def terminate(*_: object) -> None:
        stopped.append(SystemExit(143))

    def interrupt(*_: object) -> None:
        if stopped:
            raise KeyboardInterrupt
        stopped.append(KeyboardInterrupt())

    before = {
        number: signal.signal(number, handler)
        for number, handler in ((signal.SIGTERM, terminate), (signal.SIGINT, interrupt))
    }
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
