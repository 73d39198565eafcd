"""Options that mean the same in every command, and the words that several commands read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ironclip.errors import ConfigError, RegistryError, did_you_mean

if TYPE_CHECKING:
    from ironclip.attacks.autoattack import AttackList
    from ironclip.attacks.base import Attack
    from ironclip.attacks.text.base import TextAttack

Limit = Annotated[
    int | None,
    typer.Option(
        "--limit", min=1, metavar="N", help="Take N samples of each data set, the same ones on every machine."
    ),
]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="cpu, cuda or cuda:N.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, on standard output.")]
Strict = Annotated[bool, typer.Option("--strict", help="An unreadable sample is fatal, not only counted.")]
DataRoot = Annotated[
    str,
    typer.Option(
        "--data-root", envvar="IRONCLIP_DATA_ROOT", help="What {data} stands for in recipes and suites.", metavar="DIR"
    ),
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of the result.", metavar="DIR")]


def read_attack(text: str) -> Attack | AttackList:
    """Build an attack from `name` or `name:key=value,key=value`, or a list of attacks from its name.

    Raises:
        RegistryError: No attack goes by this name.
        ConfigError: A setting is unknown, of the wrong type, or no `key=value`; or a list was given settings.
    """
    from ironclip.attacks.autoattack import attack_list, attack_lists
    from ironclip.attacks.base import ATTACKS

    name, _, settings = text.partition(":")
    known = [*ATTACKS, *attack_lists()]
    if name not in known:
        raise RegistryError(
            f'unknown attack "{name}".{did_you_mean(name, known)}',
            f'"ironclip list attacks" shows all: {", ".join(known)}.',
        )
    if name in attack_lists():
        if settings:
            raise ConfigError(
                f'--attack "{text}": {name} is a list of attacks, whose settings are fixed.',
                f"Write --attack {name}, or name the attacks one by one.",
            )
        return attack_list(name)
    options = _read_settings(text, settings, "--attack", "pgd:steps=50")
    return ATTACKS.create(name, options, where=f"--attack {name}")


def read_text_attack(text: str) -> TextAttack:
    """Build an attack on texts from `name` or `name:key=value,key=value`.

    Raises:
        RegistryError: No attack on texts goes by this name.
        ConfigError: A setting is unknown, of the wrong type, or no `key=value`.
    """
    from ironclip.attacks.text.base import TEXT_ATTACKS

    name, _, settings = text.partition(":")
    options = _read_settings(text, settings, "--text-attack", "charmer:edits=2")
    return TEXT_ATTACKS.create(name, options, where=f"--text-attack {name}")


def _read_settings(text: str, settings: str, option: str, example: str) -> dict[str, str]:
    """Read `key=value,key=value`, possibly nothing."""
    found = {}
    for setting in settings.split(",") if settings else []:
        key, separator, value = setting.partition("=")
        if not (separator and key and value):
            raise ConfigError(f'{option} "{text}": "{setting}" is not key=value.', f"Write, say, {option} {example}")
        found[key.strip()] = value.strip()
    return found


def read_shard(text: str) -> tuple[int, int]:
    """Read `i/n`: part i of n, counted from 0.

    Raises:
        ConfigError: It is not i/n, or i is not below n.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if match is None or not int(match[1]) < int(match[2]):
        raise ConfigError(f'--shard is "{text}", expected i/n with i from 0 to n - 1.', "Write 0/4, 1/4, 2/4 and 3/4.")
    return int(match[1]), int(match[2])


def as_file_name(text: str) -> str:
    """Turn a source or a name into a word that is safe as a folder's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "run"
