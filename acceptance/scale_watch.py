"""The page of a run: opened as it stands, and watched in a browser while the run trains."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from acceptance.browser import requests_of
from acceptance.claims import Claim, Context, Figure, at_least, exactly, item
from acceptance.clicking import Tab, tab
from acceptance.command_line import IRONCLIP, environment, ironclip, must
from acceptance.scale_runs import IMAGES, RECIPE, small_run
from acceptance.tiny_model import SHIPPED

MODULES = ("acceptance.command_line", "acceptance.scale_runs", "ironclip.cli.train", "ironclip.cli.watch")
SETTINGS = ("optimisation.batch_size=16", "data.hold_out=32", "validation.every=8", "optimisation.epochs=3")


@item(
    "watch",
    claims=[Claim("page", "`ironclip watch --once` opened in headless Chromium: requests", exactly(0))],
    modules=(*MODULES, "acceptance.browser"),
    files=SHIPPED,
)
def watch(context: Context) -> Iterator[Figure]:
    run = small_run(context.work / "watch")
    must(ironclip("watch", run, "--once"))
    asked = requests_of(run / "watch.html")
    yield Figure(
        "page", len(asked), "; ".join(asked[:3]) or f"none; {(run / 'watch.html').stat().st_size / 1024:.0f} KiB"
    )


@item(
    "watch_live",
    claims=[
        Claim("renewed", "`ironclip watch` in Chromium while a run trains: steps of which the page told", at_least(3)),
        Claim("complete", "… it says that the run is complete, and asks no more (1: it does)", exactly(1)),
        Claim("outside", "… requests to other machines", exactly(0)),
    ],
    modules=(*MODULES, "acceptance.clicking"),
    files=SHIPPED,
)
def watch_live(context: Context) -> Iterator[Figure]:
    run = context.work / "watch_live"
    shutil.rmtree(run, ignore_errors=True)
    changes = [word for setting in SETTINGS for word in ("--set", setting)]
    with tab() as page, _started("train", RECIPE, "--out", run, "--limit", IMAGES, *changes) as training:
        while not (run / "log.jsonl").exists():
            if training.poll() is not None:
                raise RuntimeError(f"the training ended with {training.returncode}")
        with _started("watch", run, "--every", 1) as server:
            page.open(_address(server))
            told = _steps_told(page)
            complete = page.value("!document.querySelector('meta[http-equiv=refresh]')")
            page.picture(context.work / "watch.png")
        yield Figure("renewed", len(told), f"steps {', '.join(map(str, told))}")
        yield Figure("complete", float(complete), str(context.work.name) + "/watch.png")
        outside = page.asked_outside()
        yield Figure("outside", len(outside), f"{len(page.asked)} requests; {'; '.join(outside[:3]) or 'none'}")


def _steps_told(page: Tab) -> list[int]:
    """Look on until the page says that the run is complete, and return the steps that it told, without touching it."""
    told: list[int] = []
    page.wait_for("document.querySelector('.state')")
    while True:
        text = page.text(".state")
        if (found := re.match(r"(\d+) of \d+", text)) and int(found[1]) not in told:
            told.append(int(found[1]))
        if "complete" in text:
            return told


def _address(server: subprocess.Popen[str]) -> str:
    if server.stdout is None or not (line := server.stdout.readline()).startswith("http://127.0.0.1:"):
        raise RuntimeError(f"ironclip watch gave no address (exit {server.poll()})")
    return line.split()[0]


@contextmanager
def _started(*words: object) -> Iterator[subprocess.Popen[str]]:
    """Start `ironclip …`, and end it afterwards."""
    # Not buffered: the address is read while the server runs.
    process = subprocess.Popen(
        [*IRONCLIP, *map(str, words)],
        env=environment() | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)
