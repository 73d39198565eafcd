"""`ironclip demo`, clicked through in Chromium as a visitor would."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from acceptance.claims import CannotRunError, Claim, Context, Figure, exactly, item
from acceptance.clicking import PATIENCE, Tab, tab
from acceptance.command_line import IRONCLIP, environment
from acceptance.scale_runs import small_run
from acceptance.tiny_model import SHIPPED

COST = re.compile(
    r"(?:Fooled|Not fooled): .+ Cost of the attack: [\d,]+ forward and [\d,]+ backward passes, [\d.]+ s\."
)


@item(
    "demo",
    claims=[
        Claim("picked", "`ironclip demo` in Chromium: models that say what became of a picture picked", exactly(2)),
        Claim("uploaded", "… of one uploaded, with words typed, another attack and radius chosen", exactly(2)),
        Claim("pictures", "… pictures shown of it (clean, change and attacked, for each model)", exactly(6)),
        Claim(
            "mistake", "… a mistake is told in words, and nothing of the last answer stays (1: so it is)", exactly(1)
        ),
        Claim("outside", "… requests to other machines", exactly(0)),
        Claim("tracebacks", "… tracebacks in the server's output", exactly(0)),
    ],
    modules=("acceptance.clicking", "acceptance.command_line", "acceptance.scale_runs", "ironclip.cli.demo"),
    files=SHIPPED,
)
def demo(context: Context) -> Iterator[Figure]:
    if find_spec("gradio") is None:
        raise CannotRunError("gradio is not installed; it comes with the extra demo")
    run, said = small_run(context.work / "run"), context.work / "server.txt"
    upload = context.work / "upload.png"
    shades = np.linspace(0, 255, 60 * 50 * 3).reshape(60, 50, 3).astype(np.uint8)
    Image.fromarray(shades).save(upload)
    with tab() as page, _served(run, said) as address:
        page.open(address)
        page.click('[data-testid="dataset-cell-0-0"]')
        page.wait_for("document.querySelector('#image img') && document.querySelector('#classes textarea').value")
        words = _attack(page, "backward")
        yield Figure("picked", len(words), " / ".join(words))
        page.picture(context.work / "picked.png")

        page.click('#image button[aria-label="Remove Image"]')
        page.upload("#image input[type=file]", upload)
        page.type("#classes textarea", "sky, $sea$ <b>bold</b>, [wall](x)")
        page.click("#attack input")
        page.click("ul[role=listbox] li:nth-child(4)")
        page.click("#eps label:nth-of-type(4) input")
        words = _attack(page, "and 0 backward")
        yield Figure("uploaded", len(words), " / ".join(words))
        yield Figure("pictures", _pictures(page), page.picture(context.work / "uploaded.png").name)

        page.type("#classes textarea", "one")
        page.click("#go")
        page.wait_for("document.querySelector('#message').innerText.includes('Class names: 1.')")
        page.wait_for("!document.querySelector('#model-1-words').innerText.includes('Cost')")
        yield Figure("mistake", 1, page.text("#message").strip())
        outside = page.asked_outside()
        yield Figure("outside", len(outside), f"{len(page.asked)} requests; {'; '.join(outside[:3]) or 'none'}")
    yield Figure("tracebacks", said.read_text().count("Traceback"))


def _attack(page: Tab, sign: str) -> list[str]:
    """Click on Attack and return what the page says of each model, once it says so with this sign."""
    page.click("#go")
    for model in (0, 1):
        page.wait_for(f"document.querySelector('#model-{model}-words').innerText.includes('{sign}')")
    found = (COST.match(page.text(f"#model-{model}-words").strip()) for model in (0, 1))
    return [match[0] for match in found if match]


def _pictures(page: Tab) -> int:
    """Count the pictures of outcomes that are there and loaded, once they are."""
    images = [
        f"document.querySelector('#model-{model}-{part} img')"
        for model in (0, 1)
        for part in ("before", "change", "after")
    ]
    for image in images:
        page.wait_for(f"{image}?.complete && {image}.naturalWidth > 0")
    return len(images)


@contextmanager
def _served(run: Path, said: Path) -> Iterator[str]:
    """Start the demo with this run as its robust model and give its address, once it says so."""
    with said.open("w") as output:
        process = subprocess.Popen(
            [*IRONCLIP, "demo", "--robust", str(run)],
            env=environment() | {"PYTHONUNBUFFERED": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            began = time.monotonic()
            while not (found := re.search(r"http://127\.0\.0\.1:\d+", said.read_text())):
                if process.poll() is not None or time.monotonic() - began > PATIENCE:
                    raise RuntimeError(f"ironclip demo gave no address: {said.read_text().strip()[-200:]}")
                time.sleep(0.1)
            yield found[0]
        finally:
            process.terminate()
            process.wait(PATIENCE)
