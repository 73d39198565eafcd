"""YAML as people write settings: plain values, read in bounded time and refused in words where it is anything else.

Tags name types of Python in other readers, merge keys and aliases of aliases make gigabytes of a hundred bytes. Aliases
themselves are read: suites share their templates by them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ironclip.errors import ConfigError

LARGEST = 2**22
"""Bytes of a file; a class list of ImageNet-21k is a tenth of it."""

DEEPEST = 40
MOST_VALUES = 500_000

# What PyYAML raises on text that looks like a number or a date and is none, and on brackets in brackets.
_NO_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, OverflowError, RecursionError)
_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe reader without merge keys."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, _ in node.value:
            if key.tag == _MERGE:
                raise yaml.constructor.ConstructorError(None, None, "merge keys (<<) are not read", key.start_mark)
        super().flatten_mapping(node)


def read_yaml_file(path: Path) -> Any:
    """Read a file of plain YAML in UTF-8.

    Raises:
        ConfigError: It is no YAML, holds tags or merge keys, or is larger than anybody writes.
        OSError: It cannot be read.
    """
    size = path.stat().st_size
    if size > LARGEST:
        raise ConfigError(f"{path} has {size:,} bytes, too many for settings.", "Give the YAML file itself.")
    return read_yaml(path.read_bytes(), str(path))


def read_yaml(text: str | bytes, name: str) -> Any:
    """Read plain YAML.

    Args:
        text: What was written; bytes are UTF-8.
        name: What the user calls it, for the error.

    Raises:
        ConfigError: It is no YAML, holds tags or merge keys, or says more than anybody writes.
    """
    try:
        content = yaml.load(text.decode("utf-8-sig") if isinstance(text, bytes) else text, Loader=_Loader)
    except _NO_YAML as error:
        mark = getattr(error, "problem_mark", None)
        place = f" near line {mark.line + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None)
        why = f" ({reason})" if reason else ""
        raise ConfigError(f"{name} is not YAML{place}{why}.", "Mend the file; indent with spaces.") from None
    _refuse_too_much(content, name)
    return content


def _refuse_too_much(content: Any, name: str) -> None:
    """Count each value as often as it is reached: an alias is little to write and may be much to read."""
    seen, waiting = 0, [(content, 0)]
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if depth > DEEPEST:
            raise ConfigError(f"{name} nests deeper than {DEEPEST} levels.", "Settings need three or four.")
        if seen > MOST_VALUES:
            raise ConfigError(f"{name} says more than {MOST_VALUES:,} values.", "Leave out aliases of aliases.")
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        waiting += [(one, depth + 1) for one in inner]
