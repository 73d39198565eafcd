"""The command line: one thin file a command, which parses, calls the library and prints.

Importing it costs no more than typer: torch, pydantic and the rooms of the library are imported inside commands.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from ironclip.errors import IronClipError


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted.

    Args:
        arguments: Words after `ironclip`; those of the process unless given.
    """
    from ironclip.cli.app import app
    from ironclip.cli.output import start_logging, tell_error

    words = list(sys.argv[1:] if arguments is None else arguments)
    # People add it to the end of the command that has just failed, so it is understood anywhere.
    debug = "--debug" in words
    start_logging(debug=debug)
    try:
        app(args=[word for word in words if word != "--debug"], prog_name="ironclip")
    except IronClipError as error:
        if debug:
            raise
        tell_error(error.problem, error.remedy)
        sys.exit(error.exit_code)
    except OSError as error:  # a full disk, a file without permission: the machine, not the program
        if debug:
            raise
        tell_error(str(error), "Mend this and repeat the command; --debug shows where it happened.")
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        if type(error).__name__ in ("OutOfMemoryError", "MemoryError"):
            tell_error(f"out of memory: {error}", "Give a smaller --batch-size, or set optimisation.accumulate.")
        else:
            what = " ".join(str(error).split())
            tell_error(
                f"a bug of IronCLIP: {type(error).__name__}: {what}",
                "Repeat the command with --debug and report the traceback.",
            )
        sys.exit(1)
    sys.exit(0)
