"""Errors that a user can act on: one line of what is wrong, one line of what to do.

The command line prints both lines and exits with `exit_code`; the library raises.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class IronClipError(Exception):
    """Base of every error that is the user's to mend.

    Args:
        problem: What is wrong, with the value that was given.
        remedy: What to do about it.
    """

    exit_code = 2

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}\n{remedy}" if remedy else problem)
        self.problem = problem
        self.remedy = remedy

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.problem, self.remedy)  # so that a worker process can raise it


class ConfigError(IronClipError, ValueError):
    """A recipe, suite or option is wrong; lists all problems of a file at once."""


class RegistryError(IronClipError, ValueError):
    """No method, attack, suite or model goes by this name."""


class ShapeError(IronClipError, ValueError):
    """A tensor does not have the shape that the docstring gives."""


class ValueRangeError(IronClipError, ValueError):
    """A number or a pixel lies outside its range."""


class DataError(IronClipError, ValueError):
    """A data source is missing, empty, or holds what cannot be read."""


class WeightsError(IronClipError, ValueError):
    """Weights are missing, do not fit, or are not weights at all."""


class ResumeError(IronClipError, ValueError):
    """A stored run cannot be continued with what was asked for; names the field that differs."""


class RunFailedError(IronClipError, RuntimeError):
    """The request was right but the work failed (three NaN steps in a row, say)."""

    exit_code = 1


class MissingDependencyError(IronClipError, ImportError):
    """An optional package is absent; the remedy is the exact install line."""

    exit_code = 1

    def __init__(self, package: str, extra: str = "", *, purpose: str = "") -> None:
        self.package, self.extra, self.purpose = package, extra, purpose
        what = f"{purpose} needs the package {package}" if purpose else f"the package {package} is needed"
        line = f'pip install "ironclip[{extra}]"' if extra else f"pip install {package}"
        super().__init__(f"{what}, which is not installed.", f"Install it with: {line}")

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.package, self.extra)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return ` Did you mean "x" or "y"?` for the nearest known names, or an empty string."""
    near = difflib.get_close_matches(given, list(known), n=3, cutoff=0.5)
    return " Did you mean " + " or ".join(f'"{name}"' for name in near) + "?" if near else ""


class UnreadableSampleError(DataError):
    """One sample cannot be decoded: counted and named by the caller, fatal only under `--strict`."""

    def __init__(self, key: str, reason: str) -> None:
        self.key, self.reason = key, reason
        super().__init__(f"sample {key} cannot be read: {reason}", "Mend or remove the file, or run without --strict.")

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.key, self.reason)
