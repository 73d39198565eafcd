"""A stranger's first minutes: a fresh clone, an empty environment, `make quickstart`."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from acceptance.browser import requests_of
from acceptance.claims import ROOT, CannotRunError, Claim, Context, Figure, at_least, at_most, below, exactly, item
from acceptance.clones import Clone, fresh_clone
from acceptance.store import git
from acceptance.tiny_model import SHIPPED
from ironclip.evaluation.intervals import Interval
from ironclip.report.results import Cell, DatasetTable, Results
from ironclip.report.tables import load_results
from ironclip.report.wording import share

OUT = "quickstart"
RUNS = ("original", "tecoa", "fare")
SCREENSHOT = "docs/images/quickstart.png"
BUILT_FROM = ("src", "tools", "pyproject.toml", "constraints.txt", "Makefile", "README.md", SCREENSHOT)
SECONDS = 360


def committed() -> str:
    """Return the hash of what a clone would run and show."""
    return hashlib.sha256(git("ls-tree", "-r", "HEAD", "--", *BUILT_FROM).encode()).hexdigest()


@item(
    "quickstart",
    claims=[
        Claim("exit", "fresh clone, empty environment, `make quickstart` without a network: exit code", exactly(0)),
        Claim("seconds", "… its time after installation, two cores", at_most(SECONDS, "s")),
        Claim(
            "gain",
            "under attack, on a bundled set not tuned on: the better tuned model above the original",
            at_least(20, "points"),
        ),
        Claim("original", "… where the original keeps", below(20, "%")),
        Claim("page", "its page opened in headless Chromium: requests to outside", exactly(0)),
        Claim("readme", "the screenshot is in the README (1: it is)", exactly(1)),
    ],
    modules=["acceptance.browser", "acceptance.clones", "ironclip.report.tables"],
    files=SHIPPED,
    state=committed,
)
def quickstart(context: Context) -> Iterator[Figure]:
    if context.short:
        raise CannotRunError("the short form installs nothing")
    yield Figure("readme", float(shows_screenshot(ROOT)), SCREENSHOT)
    with fresh_clone() as clone:
        yield from _run(clone, context.work)
        results = load_results([clone.path / OUT / "eval" / name for name in RUNS])
        gain, original, shown = best_gain(results)
        yield Figure("gain", gain, shown)
        yield Figure("original", 100 * original.estimate, share(original))
        kept = shutil.copy(clone.path / OUT / "report.html", context.work / "report.html")
    asked = requests_of(Path(kept))
    yield Figure("page", len(asked), "; ".join(asked[:3]) or f"none; {Path(kept).stat().st_size / 2**20:.1f} MiB")


def _run(clone: Clone, logs: Path) -> Iterator[Figure]:
    """Install, then run the quickstart where there is no network."""
    installed = clone.make("install", logs / "install.txt")
    if installed.code:
        raise RuntimeError(f"the installation failed: {installed.last}")
    within = without_network()
    made = clone.make("quickstart", logs / "quickstart.txt", within=within)
    head = git("rev-parse", "--short=12", "HEAD")
    said = f"exit {made.code} at {head}; installed in {installed.seconds:.0f} s"
    if within:
        yield Figure("exit", made.code, said)
    else:
        yield Figure("exit", None, f"{said}, but the network cannot be taken away here")
    yield Figure("seconds", made.seconds if not made.code else float("nan"), f"{made.seconds:.0f} s")
    if made.code:
        raise RuntimeError(f"make quickstart failed: {made.last}")


def without_network() -> Sequence[str]:
    """Return the command in which there is no network, empty where this system has none."""
    for command in (("unshare", "--net"), ("unshare", "--net", "--map-root-user")):
        if shutil.which(command[0]) and not subprocess.run([*command, "true"], capture_output=True).returncode:
            return command
    return ()


def best_gain(results: Results) -> tuple[float, Interval, str]:
    """Return the largest gain under attack in points, what the original keeps there, and all gains in words.

    Raises:
        ValueError: A model was not compared.
    """
    found: list[tuple[float, Interval]] = []
    words: list[str] = []
    for table in results.datasets:
        original, *others = _cells(table)
        for model, cell in zip(results.models[1:], others, strict=True):
            if cell.versus_first is None:
                raise ValueError(f"{model.name} was not compared on {table.name}")
            paired = cell.versus_first.paired
            found.append((100 * paired.difference, original.share))
            ends = f"[{100 * paired.low:+.1f}, {100 * paired.high:+.1f}]"
            words.append(f"{table.name} {model.name} {100 * paired.difference:+.1f} {ends}")
    gain, kept = max(found, key=lambda pair: pair[0])
    return gain, kept, f"{results.datasets[0].budgets[results.datasets[0].reference].eps}: {'; '.join(words)}"


def _cells(table: DatasetTable) -> list[Cell]:
    cells = [cell for cell in table.robust[table.reference] if cell is not None]
    if len(cells) != len(table.clean):
        raise ValueError(f"not every model was attacked on {table.name}")
    return cells


def shows_screenshot(clone: Path) -> bool:
    """Say whether the README shows the screenshot, and it is a picture."""
    path = clone / SCREENSHOT
    if f"]({SCREENSHOT})" not in (clone / "README.md").read_text(encoding="utf-8") or not path.is_file():
        return False
    with Image.open(path) as image:
        image.load()
    return True
