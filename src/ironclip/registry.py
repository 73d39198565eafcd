"""Registries: a new method or attack is one file in its folder, found by being there.

A registry reads the modules of its package when it is first asked, so importing `ironclip` costs nothing and a new
file needs no list to be edited.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar, get_args, get_type_hints

import pydantic

from ironclip.errors import ConfigError, IronClipError, RegistryError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Classes by name, each a (frozen) dataclass of its settings.

    Args:
        kind: What is registered, as users say it: "method", "attack".
        package: The package whose modules register themselves on import.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self.package = kind, package
        self._entries: dict[str, type[T]] = {}
        self._tags: dict[str, frozenset[str]] = {}
        self._loaded = False

    def register(self, name: str, *, tags: set[str] | frozenset[str] = frozenset()) -> Callable[[type[T]], type[T]]:
        """Return the class decorator that files a class under `name`."""

        def enter(cls: type[T]) -> type[T]:
            if self._entries.get(name, cls) is not cls:
                raise RegistryError(f'two {self.kind}s are called "{name}".', "Rename one of them.")
            cls.name = name  # type: ignore[attr-defined]  # every registered class declares `name: ClassVar[str]`
            self._entries[name], self._tags[name] = cls, frozenset(tags)
            return cls

        return enter

    def names(self, *tags: str) -> list[str]:
        """Return the registered names that carry all the tags, sorted."""
        self._load()
        return sorted(name for name in self._entries if self._tags[name] >= set(tags))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def get(self, name: str) -> type[T]:
        """Return the class filed under `name`.

        Raises:
            RegistryError: There is none; near names are shown.
        """
        self._load()
        if name not in self._entries:
            raise RegistryError(
                f'unknown {self.kind} "{name}".{did_you_mean(name, self._entries)}',
                f'"ironclip list {self.kind}s" shows all: {", ".join(sorted(self._entries))}.',
            )
        return self._entries[name]

    def create(self, name: str, options: Mapping[str, Any] | None = None, *, where: str = "") -> T:
        """Build the class filed under `name` from options that are checked by type.

        Args:
            name: Registered name.
            options: Settings; an unknown one is refused, the nearest known one named.
            where: How the user would find these options ("method", "attack"), for the error.

        Raises:
            RegistryError: Unknown name.
            ConfigError: An option is unknown, missing, or of the wrong type; all problems at once.
        """
        cls = self.get(name)
        return build(cls, dict(options or {}), where=where or self.kind)

    def _load(self) -> None:
        if self._loaded:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        self._loaded = True  # only now: a module that fails to import is to fail again, not to be missing


def build(cls: type[T], options: Mapping[str, Any], *, where: str) -> T:
    """Build a dataclass or pydantic model from untrusted options.

    Raises:
        ConfigError: With one line a problem: where, what was given, what was expected.
        IronClipError: What the class itself raises when it checks its settings.
    """
    if dataclasses.is_dataclass(cls):
        known = [field.name for field in dataclasses.fields(cls) if field.init]
    else:
        known = list(getattr(cls, "model_fields", ()))
    unknown = [key for key in options if key not in known]
    if unknown:
        lines = [f'{where}: unknown key "{key}".{did_you_mean(key, known)}' for key in unknown]
        raise ConfigError("\n".join(lines), f"Known keys of {where}: {', '.join(known) or 'none'}.")
    if dataclasses.is_dataclass(cls):
        _refuse_truth_for_numbers(cls, options, where)
    try:
        return pydantic.TypeAdapter(cls).validate_python(dict(options))
    except pydantic.ValidationError as error:
        for problem in error.errors():
            cause = problem.get("ctx", {}).get("error")
            if isinstance(cause, IronClipError):
                raise cause from None  # the class checks itself, and says what to do better than pydantic can
        raise ConfigError(explain(error, where), f"Known keys of {where}: {', '.join(known)}.") from None


def _refuse_truth_for_numbers(cls: type, options: Mapping[str, Any], where: str) -> None:
    """Refuse `steps: true`, which pydantic reads as 1."""
    types = get_type_hints(cls)
    for key, value in options.items():
        accepted = (types[key], *get_args(types[key]))
        if isinstance(value, bool) and bool not in accepted and (int in accepted or float in accepted):
            raise ConfigError(f"{where}.{key}: expected a number (got {str(value).lower()}).", "Write a number.")


def explain(error: pydantic.ValidationError, where: str) -> str:
    """Say each problem of a pydantic error in one line, nested keys as `a.b`."""
    lines = []
    for problem in error.errors():
        place = ".".join([where, *(str(part) for part in problem["loc"])]) if problem["loc"] else where
        # A whole section is no help: what is wrong with it stands in the message.
        whole = problem["type"] == "missing" or isinstance(problem["input"], Mapping)
        given = "" if whole else f" (got {problem['input']!r})"
        lines.append(f"{place}: {problem['msg'].removeprefix('Value error, ')}{given}")
    return "\n".join(lines)
