"""`python:package.module:factory`: a user's own code that makes a model. Never reached from a recipe or a hub file."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ironclip.errors import ConfigError, did_you_mean


def call_factory(target: str) -> Callable[[Tensor], Tensor]:
    """Import a module and call its factory without arguments.

    Args:
        target: `package.module:factory`; the current folder is searched after the installed packages.

    Returns:
        What the factory made: pixels `[B, 3, H, W]` in [0, 1] to logits `[B, C]`.

    Raises:
        ConfigError: No such module or function, a factory that wants arguments, or one that makes nothing callable.
    """
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f'"python:{target}" names no factory.', "Write python:package.module:factory.")
    module = _import(module_name)
    factory = getattr(module, attribute, None)
    if factory is None:
        known = [name for name in vars(module) if not name.startswith("_")]
        raise ConfigError(
            f'{module.__file__} has no "{attribute}".{did_you_mean(attribute, known)}',
            "Write a function of that name which takes nothing and returns the model.",
        )
    if isinstance(factory, nn.Module) or not callable(factory):
        raise ConfigError(
            f"python:{target} is a {type(factory).__name__}, not a factory.",
            f"Write a function that returns it: def make(): return {attribute}",
        )
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise ConfigError(
            f"the factory python:{target} cannot be called without arguments: {error}.", "Give its arguments defaults."
        ) from None
    model = factory()
    if not callable(model):
        raise ConfigError(
            f"the factory python:{target} returned {model!r:.60}, which is not callable.",
            "Return an nn.Module or a function from pixels [B, 3, H, W] in [0, 1] to logits [B, C].",
        )
    return model  # type: ignore[no-any-return]  # a user's callable


def _import(name: str) -> Any:
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        # Last, so that a file here hides no installed package; kept, since the module may import its neighbours later.
        sys.path.append(here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            raise ConfigError(
                f'no module "{missing}" among the installed packages or in {here}.',
                "Run ironclip in the folder that holds it, or install its package.",
            ) from None
        raise ConfigError(
            f'the module "{name}" imports "{missing}", which is not installed.', f"Install it: pip install {missing}"
        ) from error


def source_file(call: object) -> Path | None:
    """Return the file that holds the code of a callable; None where it has none (built in, typed at a prompt)."""
    while isinstance(call, functools.partial):
        call = call.func
    code = call if inspect.isroutine(call) or inspect.isclass(call) else type(call)
    try:
        found = inspect.getsourcefile(code)
    except (OSError, TypeError):
        return None
    return Path(found) if found and Path(found).is_file() else None
