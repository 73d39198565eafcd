"""Chromium as a person uses it: real clicks and keys by its own debugging protocol, pictures of what is seen.

The protocol is JSON over a websocket. Its client, `websockets`, comes with gradio, the only page that is clicked.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from acceptance.browser import BROWSERS, QUIET
from acceptance.claims import CannotRunError

PATIENCE = 60.0
"""Seconds that anything on a page may take."""

NOWHERE = "http://127.0.0.1:9"
"""A proxy that is not there: nothing leaves this machine, whoever asks."""


class Tab:
    """One tab of the browser.

    Attributes:
        asked: Addresses of everything that its pages asked for so far; what the browser asks on its own is not there.
    """

    def __init__(self, socket: Any) -> None:
        self._socket, self._number = socket, 0
        self.asked: list[str] = []
        self.command("Network.enable")

    def command(self, method: str, **settings: Any) -> dict[str, Any]:
        """Send a command and return its answer; of what happens in between, requests are noted."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": settings}))
        while True:
            answer = json.loads(self._socket.recv(timeout=PATIENCE))
            if answer.get("method") == "Network.requestWillBeSent":
                self.asked.append(answer["params"]["request"]["url"])
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def open(self, address: str) -> None:
        """Go to a page."""
        self.command("Page.navigate", url=address)

    def value(self, script: str) -> Any:
        """Return the value of an expression in the page."""
        found = self.command("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['exceptionDetails'].get('text')}")
        return found["result"].get("value")

    def wait_for(self, script: str) -> None:
        """Wait until an expression is true.

        Raises:
            TimeoutError: It never was.
        """
        began = time.monotonic()
        while not self.value(f"!!({script})"):  # an element itself has no value
            if time.monotonic() - began > PATIENCE:
                raise TimeoutError(f"in {PATIENCE:.0f} s the page never had: {script}")
            time.sleep(0.1)

    def click(self, selector: str) -> None:
        """Click the middle of an element with the mouse, as soon as it can be seen."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.wait_for(f"{element} && {element}.getBoundingClientRect().width > 0")
        self.value(f"{element}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = self.value(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({element}.getBoundingClientRect())")
        for kind in ("mousePressed", "mouseReleased"):
            self.command("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def type(self, selector: str, text: str) -> None:
        """Put text in place of what a field holds."""
        self.click(selector)
        self.value(f"document.querySelector({json.dumps(selector)}).select()")
        self.command("Input.insertText", text=text)

    def upload(self, selector: str, file: Path) -> None:
        """Give a file to a field for files."""
        self.wait_for(f"document.querySelector({json.dumps(selector)})")
        root = self.command("DOM.getDocument")["root"]["nodeId"]
        node = self.command("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.command("DOM.setFileInputFiles", nodeId=node, files=[str(file.resolve())])

    def asked_outside(self) -> list[str]:
        """Return the addresses that its pages asked for and that are not of this machine."""
        self.value("1")  # reads what has happened since the last command
        hosts = {address: urlsplit(address) for address in self.asked}
        return [
            a for a, parts in hosts.items() if parts.scheme not in ("data", "blob") and parts.hostname != "127.0.0.1"
        ]

    def text(self, selector: str) -> str:
        """Return what is read in an element."""
        return str(self.value(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def picture(self, path: Path) -> Path:
        """Write what is seen of the whole page."""
        size = self.command("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        found = self.command("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(found["data"]))
        return path


@contextmanager
def tab() -> Iterator[Tab]:
    """Start Chromium with one empty tab that reaches this machine only.

    Raises:
        CannotRunError: There is no Chromium, or no client for websockets.
    """
    try:
        from websockets.sync.client import connect
    except ImportError:
        raise CannotRunError("websockets is not installed; it comes with the extra demo") from None
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise CannotRunError(f"none of {', '.join(BROWSERS)} is installed")
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags: Sequence[str] = (
            *("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--window-size=1280,900"),
            *(f"--proxy-server={NOWHERE}", f"--user-data-dir={profile}", *QUIET),
        )
        process = subprocess.Popen(
            [browser, *flags, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            with connect(_address(Path(profile), process), max_size=None, open_timeout=PATIENCE) as socket:
                yield Tab(socket)
        finally:
            process.terminate()
            process.wait(PATIENCE)


def _address(profile: Path, process: subprocess.Popen[bytes]) -> str:
    """Return the address of the first tab, once the browser has one."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    note = profile / "DevToolsActivePort"
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE and process.poll() is None:
        if note.is_file() and (port := note.read_text().split("\n")[0]):
            with opener.open(f"http://127.0.0.1:{port}/json/list") as answer:
                for entry in json.load(answer):
                    if entry["type"] == "page":
                        return str(entry["webSocketDebuggerUrl"])
        time.sleep(0.1)
    raise RuntimeError(f"Chromium opened no tab (exit {process.poll()})")
