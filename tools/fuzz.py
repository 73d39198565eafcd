"""Give the parsers what nobody would write, keep what reaches new lines, and stop at the first crash.

    python tools/fuzz.py --minutes 30                  # both parsers, from the corpus in tests/corpus
    python tools/fuzz.py --minutes 1 --only shard      # one of them

Guided by coverage: lines are counted with `sys.settrace`, and an input that reaches a line which none before it did
joins the corpus. A crash is any error but those that say what to do, or a parser that takes longer than ten seconds;
its input is written to CORPUS/PARSER/crash-HASH and named. Prints a line of JSON a parser.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import logging
import random
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

from ironclip import plain_yaml
from ironclip.data import wds
from ironclip.data.sources import open_dataset
from ironclip.errors import IronClipError
from ironclip.pretraining.recipe import load_pretrain_recipe
from ironclip.pretraining.vlm.recipe import load_vlm_recipe
from ironclip.training import recipe, recipe_file

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "tests" / "corpus"
SECONDS = 10
LARGEST = 20_000
"""Bytes of an input that joins the corpus; larger ones are tried and forgotten."""

Line = tuple[str, int]


def parse_recipe(content: bytes, folder: Path) -> None:
    """Read and check a recipe; after a zero byte come changes, a line each. What begins with a brace is a run.json.

    What speaks of an architecture or a tower is read as a recipe of pre-training too.
    """
    body, _, changes = content.partition(b"\0")
    path = folder / ("run.json" if body.startswith(b"{") else "recipe.yaml")
    path.write_bytes(body)
    overrides = changes.decode(errors="replace").splitlines()
    with suppress(IronClipError):
        recipe.load_recipe(path, overrides).resolved()
    if b"architecture" in body or b"tower" in body:
        with suppress(IronClipError):
            load_pretrain_recipe(path, overrides)
        with suppress(IronClipError):
            load_vlm_recipe(path, overrides)


def parse_shards(content: bytes, folder: Path) -> None:
    """Open shards and decode their images; the first byte says how the shards lie."""
    layout, body = content[:1], content[1:]
    half = len(body) // 2 // 512 * 512
    names, source = {
        b"1": (["test-0.tar", "test-2.tar"], "wds:{}"),
        b"2": (["a-0.tar", "b-0.tar"], "wds:{}"),
        b"3": (["a-0.tar", "b-0.tar"], "wds:{}?split=b"),
        b"4": (["test-0.tar", "test-1.tar"], "wds:{}/test-*.tar"),
        b"5": (["test-0.tar"], "wds:{}/test-*.tar?split=test"),
        b"6": (["0.tar"], "wds:{}/0.tar"),
        b"7": (["test-0.tar"], "wds:{}/elsewhere"),
        b"8": (["test-0.tar"], "wds:{}?split=tset"),
        b"9": (["notes.txt"], "wds:{}"),
    }.get(layout, (["test-0.tar"], "wds:{}?split=test"))
    for name, part in zip(names, (body,) if len(names) == 1 else (body[:half], body[half:]), strict=True):
        (folder / name).write_bytes(part)
    try:
        dataset = open_dataset(source.format(folder))
    except IronClipError:
        return
    for position in range(min(len(dataset), 20)):
        with suppress(IronClipError):
            dataset[position]


@dataclass(frozen=True)
class Parser:
    """What is fuzzed.

    Attributes:
        parse: Takes an input and an empty folder; returns or raises `IronClipError`, or has a bug.
        modules: Whose lines are counted.
        words: Pieces that mutations put in.
    """

    parse: Callable[[bytes, Path], None]
    modules: tuple[ModuleType, ...]
    words: tuple[bytes, ...]


PARSERS = {
    "recipe": Parser(
        parse_recipe,
        (plain_yaml, recipe_file, recipe),
        tuple(
            b"method:|attack:|threat:|optimisation:|data:|validation:|sweep:|text_attack:|name: |eps: |norm: |steps: "
            b"|epochs: |lr: |batch_size: |hold_out: |{|}|[|]|, |: |&a |*a|<<: |!!int |!!binary |? |- |\n  |\t|'|\"|#"
            b"|1e-4|1e999|-1|0|true|null|.nan|2020-01-01|4/255|1/0|tecoa|leaf|pgd|\0seed=1|\0a.b=[|python:a:b".split(
                b"|"
            )
        ),
    ),
    "shard": Parser(
        parse_shards,
        (wds,),
        tuple(
            b"0|1|4|ustar|../|/|.png|.cls|.json|.txt|path=|size=-1|L|x|g|2|\x1f\x8b|\xff\xff\xff\xff\xff\xff"
            b'|{"label": 3}|{"captions": ["a"]}'.split(b"|")
        ),
    ),
}


def body_lines(module: ModuleType) -> set[Line]:
    """Return the lines of a module's functions: what runs when it is used, not when it is imported."""
    path = str(module.__file__)
    waiting = [compile(Path(path).read_text(encoding="utf-8"), path, "exec")]
    lines: set[Line] = set()
    while waiting:
        code = waiting.pop()
        waiting += [one for one in code.co_consts if isinstance(one, CodeType)]
        if code.co_flags & 0x2:  # CO_NEWLOCALS: a function, not a module or the body of a class
            lines |= {
                (path, line) for _, _, line in code.co_lines() if line is not None and line != code.co_firstlineno
            }
    return lines


@dataclass
class Coverage:
    """The lines of some modules that have run."""

    wanted: set[Line]
    reached: set[Line] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._files = {path for path, _ in self.wanted}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note what runs inside."""
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(before)

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        return self._line if frame.f_code.co_filename in self._files else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
        self.reached.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line

    @property
    def share(self) -> float:
        """Of the wanted lines."""
        return len(self.reached & self.wanted) / len(self.wanted)


def mutated(content: bytes, other: bytes, words: tuple[bytes, ...], chance: random.Random) -> bytes:
    """Change an input in one to six places; gzipped ones are changed inside, or they would all end at the checksum."""
    if content[1:3] == b"\x1f\x8b" and chance.random() < 0.7:
        with suppress(OSError, EOFError, zlib.error):
            inside = mutated(content[:1] + gzip.decompress(content[1:]), other, words, chance)
            return inside[:1] + gzip.compress(inside[1:], mtime=0)
    changed = bytearray(content)
    for _ in range(chance.randint(1, 6)):
        place, length = chance.randrange(len(changed) + 1), chance.choice((1, 1, 2, 8, 64, 512))
        kind = chance.randrange(7)
        if kind == 0 and changed:
            changed[place - 1] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del changed[place : place + length]
        elif kind == 2:
            changed[place:place] = chance.choice(words)
        elif kind == 3:
            word = chance.choice(words)
            changed[place : place + len(word)] = word
        elif kind == 4:
            changed[place:place] = changed[place : place + length] * chance.choice((1, 2, 50))
        elif kind == 5 and other:
            start = chance.randrange(len(other))
            changed[place : place + length] = other[start : start + length]
        else:
            changed[place:place] = chance.randbytes(length)
    return bytes(changed[: 4 * LARGEST])


@dataclass(frozen=True)
class Found:
    """What fuzzing a parser came to.

    Attributes:
        inputs: How many were tried.
        kept: Files of the corpus now.
        lines: Of the parser's functions.
        reached: Share of them.
        missing: Those that were not, as file:line.
        crash: The error and where its input lies; None where there was none.
    """

    inputs: int
    kept: int
    lines: int
    reached: float
    missing: tuple[str, ...]
    crash: str | None


def fuzz(parser: Parser, corpus: Path, *, seconds: float, seed: int) -> Found:
    """Try the corpus, then mutations of it, until the time is up or the parser crashes."""
    chance = random.Random(seed)
    coverage = Coverage(set().union(*map(body_lines, parser.modules)))
    waiting = [path.read_bytes() for path in sorted(corpus.glob("*"))]
    kept: list[bytes] = []
    tried, end, crash = 0, time.monotonic() + seconds, None
    while crash is None and (waiting or time.monotonic() < end):
        from_corpus = bool(waiting)
        content = waiting.pop() if from_corpus else mutated(*chance.choices(kept or [b""], k=2), parser.words, chance)
        known = len(coverage.reached)
        crash = attempt(parser, content, coverage)
        tried += 1
        if crash is not None:
            crash = f"{crash}; input: {_keep(corpus, content, 'crash-')}"
        elif from_corpus or (len(coverage.reached) > known and len(content) <= LARGEST):
            kept.append(content)
            if not from_corpus:
                _keep(corpus, content)
    missing = sorted(f"{Path(path).name}:{line}" for path, line in coverage.wanted - coverage.reached)
    return Found(tried, len(kept), len(coverage.wanted), coverage.share, tuple(missing), crash)


def attempt(parser: Parser, content: bytes, coverage: Coverage) -> str | None:
    """Give a parser one input; return what broke, None if nothing did."""
    before = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    try:
        with tempfile.TemporaryDirectory() as folder, coverage.watching():
            parser.parse(content, Path(folder))
    except Exception as error:  # whatever it is, a parser must not raise it
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return None


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"longer than {SECONDS} s")


def _keep(corpus: Path, content: bytes, prefix: str = "") -> Path:
    corpus.mkdir(parents=True, exist_ok=True)
    path = corpus / f"{prefix}{hashlib.sha256(content).hexdigest()[:12]}"
    path.write_bytes(content)
    return path


def main() -> int:
    """Run the command line and return its exit code: 1 after a crash."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--minutes", type=float, default=1.0, help="for all parsers together")
    arguments.add_argument("--corpus", type=Path, default=CORPUS, help="a folder a parser in it")
    arguments.add_argument("--only", choices=sorted(PARSERS), help="one parser")
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    logging.disable(logging.WARNING)
    names = [options.only] if options.only else sorted(PARSERS)
    crashed = False
    for name in names:
        found = fuzz(PARSERS[name], options.corpus / name, seconds=60 * options.minutes / len(names), seed=options.seed)
        print(json.dumps({"parser": name, **vars(found)}), flush=True)
        crashed |= found.crash is not None
    return int(crashed)


if __name__ == "__main__":
    sys.exit(main())
