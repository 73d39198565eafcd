"""Recipe files: YAML (or the run.json of a run) with changes from the command line, before anybody checks them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pydantic

from ironclip.errors import ConfigError, did_you_mean
from ironclip.plain_yaml import read_yaml, read_yaml_file

# 1e-4 as people mean it: YAML takes it for text, since it has no point.
_POWER_OF_TEN = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def read_recipe_file(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read the content of a recipe, or of the `run.json` of a run, which repeats it.

    Args:
        path: YAML file, or a `run.json`.
        overrides: Changes such as `optimisation.lr=1e-4`; values are read as YAML.

    Raises:
        ConfigError: No such file, no YAML, no mapping, or a change that fits nowhere.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"there is no recipe {file}.", "Give the path of a YAML file; recipes/ holds examples.")
    content = _read(file)
    if isinstance(content, dict) and isinstance(content.get("recipe"), dict) and "command" in content:
        content = content["recipe"]
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds no mapping.", "A recipe is key: value; recipes/ holds examples.")
    for override in overrides:
        _override(content, override)
    return content


def _read(file: Path) -> Any:
    if file.suffix != ".json":
        return _number(read_yaml_file(file))
    # JSON is not quite YAML: its 3e-05 is a number.
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        place = f": line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ConfigError(f"{file} is not JSON{place}.", "Give the run.json of a run.") from None


def known_keys(content: dict[str, Any], section: type, prefix: str = "") -> tuple[dict[str, Any], list[str]]:
    """Split the content of a section into what it knows and a line for each key that it does not.

    Args:
        content: As it was read.
        section: A pydantic model or a dataclass; sections in it are looked into.
        prefix: Where the section stands, "data.".
    """
    annotations = _annotations(section)
    known: dict[str, Any] = {}
    problems: list[str] = []
    for key, value in content.items():
        if key not in annotations:
            problems.append(f'unknown key "{prefix}{key}".{did_you_mean(str(key), annotations)}')
            continue
        known[key] = value
        for inner in (annotations[key], *get_args(annotations[key])):
            if not isinstance(value, dict) or not _annotations(inner):
                continue
            if get_origin(annotations[key]) is dict:  # sections by name
                known[key] = dict(value)
                for name, entry in value.items():
                    if isinstance(entry, dict):
                        known[key][name], more = known_keys(entry, inner, f"{prefix}{key}.{name}.")
                        problems += more
            else:
                known[key], more = known_keys(value, inner, f"{prefix}{key}.")
                problems += more
    return known, problems


def _annotations(section: Any) -> dict[str, Any]:
    """Return the types of a section's keys; empty for what is no section."""
    if isinstance(section, type) and issubclass(section, pydantic.BaseModel):
        return {name: field.annotation for name, field in section.model_fields.items()}
    if isinstance(section, type) and dataclasses.is_dataclass(section):
        types = get_type_hints(section)
        return {field.name: types[field.name] for field in dataclasses.fields(section) if field.init}
    return {}


def _override(content: dict[str, Any], override: str) -> None:
    place, separator, text = override.partition("=")
    if not separator or not place:
        raise ConfigError(f'--set "{override}" is not key=value.', "Write, say, --set optimisation.lr=1e-4")
    *parents, last = place.split(".")
    section = content
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise ConfigError(
                f'--set "{override}": {parent} is no section.', "Give the path of a value, such as data.train."
            )
    try:
        section[last] = _number(read_yaml(text, text))
    except ConfigError as error:
        raise ConfigError(f'--set "{override}": {error.problem}', "Close brackets and quotes.") from None


def _number(value: Any) -> Any:
    """Turn powers of ten without a point into numbers, at every depth."""
    if isinstance(value, dict):
        return {key: _number(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_number(entry) for entry in value]
    if isinstance(value, str) and _POWER_OF_TEN.fullmatch(value):
        return float(value)
    return value
