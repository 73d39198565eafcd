from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ironclip.cli.app import app

COMMANDS = [command.name for command in app.registered_commands]
SOURCE = Path(__file__).parents[2] / "src"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE), "COLUMNS": "80", "NO_COLOR": "1"}


def test_every_file_of_a_command_is_a_command():
    files = {path.stem for path in (SOURCE / "ironclip" / "cli").glob("*.py")}
    assert len(files - {"__init__", "app", "options", "output"}) == len(COMMANDS) == 18


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_the_stored_text(command, ironclip, golden):
    result = ironclip(*filter(None, [command, "--help"]))
    assert result.code == 0
    assert result.err == ""
    golden.check(f"help/{command or 'ironclip'}.txt", result.out)


def test_options_mean_the_same_everywhere(ironclip):
    """The same option has the same words in every command but for --seed, whose default is the recipe's in train."""
    meaning: dict[str, set[str]] = {}
    for command in COMMANDS:
        text = ironclip(command, "--help").out
        for option, words in re.findall(r"^  (--[a-z-]+).*?  +(.*(?:\n {10,}.*)*)", text, re.MULTILINE):
            meaning.setdefault(option, set()).add(" ".join(words.split()).partition("  [")[0])
    for option in ("--limit", "--device", "--json", "--strict", "--data-root"):
        assert len(meaning[option]) == 1, meaning[option]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_nothing_heavy(command):
    code = (
        "import sys\n"
        "from ironclip.cli import main\n"
        "try:\n"
        f"    main({[*filter(None, [command, '--help'])]!r})\n"
        "except SystemExit as ended:\n"
        "    assert not ended.code, ended.code\n"
        "heavy = {'torch', 'yaml', 'pyarrow', 'numpy', 'open_clip', 'rich'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_help_takes_less_than_half_of_importing_torch():
    # The best of three: other work on the machine makes either slower, never faster.
    help_seconds = min(seconds("-m", "ironclip", "--help") for _ in range(3))
    torch_seconds = min(seconds("-c", "import torch") for _ in range(3))
    assert help_seconds < torch_seconds / 2, f"{help_seconds:.2f} s against {torch_seconds:.2f} s"


def seconds(*words: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *words], env=ENVIRONMENT, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def test_without_a_command_the_help_is_shown(ironclip):
    result = ironclip()
    assert result.code == 2
    assert "Commands:" in result.out + result.err


def test_version(ironclip):
    import ironclip as package

    assert ironclip("--version").out == f"{package.__version__}\n"
