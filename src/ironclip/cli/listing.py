"""`ironclip list`: what there is to choose from, a line each."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

from ironclip.cli.options import Json
from ironclip.cli.output import say, say_json

Kind = Literal["methods", "attacks", "suites", "models"]


def list_command(
    kind: Annotated[Kind, typer.Argument(metavar="KIND", help="methods, attacks, suites or models.")],
    json: Json = False,
) -> None:
    """List what there is to choose from, a line each."""
    listing: dict[Kind, Callable[[], dict[str, str]]] = {
        "methods": _methods,
        "attacks": _attacks,
        "suites": _suites,
        "models": _models,
    }
    entries = listing[kind]()
    if json:
        say_json(entries)
        return
    width = max(map(len, entries), default=0)
    for name, line in entries.items():
        say(f"{name.ljust(width)}  {line}")


def _methods() -> dict[str, str]:
    from ironclip.methods.base import METHODS

    return _described({name: METHODS.get(name) for name in METHODS})


def _attacks() -> dict[str, str]:
    from ironclip.attacks.autoattack import attack_lists
    from ironclip.attacks.base import ATTACKS
    from ironclip.attacks.text.base import TEXT_ATTACKS

    images, texts = ({name: registry.get(name) for name in registry} for registry in (ATTACKS, TEXT_ATTACKS))
    return _described(images) | attack_lists() | _described(texts)


def _suites() -> dict[str, str]:
    from ironclip.suites.suite import load_suite, suite_names

    suites = {name: load_suite(name, data_root="data") for name in suite_names()}
    return {
        name: f"{suite.title} (version {suite.version}): {', '.join(entry.name for entry in suite.entries)}"
        for name, suite in suites.items()
    }


def _models() -> dict[str, str]:
    from ironclip.models import sources

    return dict(re.findall(r"^ {4}(\S.*?) {2,}(\S.*)$", sources.__doc__ or "", re.MULTILINE))


def _described(classes: dict[str, type[Any]]) -> dict[str, str]:
    """Describe each class by its own first line, or by its module's where it has the module to itself."""
    homes = [cls.__module__ for cls in classes.values()]
    lines = {}
    for name, cls in classes.items():
        alone = homes.count(cls.__module__) == 1
        text = inspect.getdoc(sys.modules[cls.__module__] if alone else cls) or ""
        lines[name] = text.partition("\n")[0]
    return lines
