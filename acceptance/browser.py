"""A page in headless Chromium, and everything that it asks the network for."""

from __future__ import annotations

import shutil
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from acceptance.claims import CannotRunError

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# What the browser would ask for on its own account.
QUIET = (
    *("--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--disable-sync"),
    *("--disable-extensions", "--no-first-run", "--metrics-recording-only", "--no-default-browser-check"),
)
CONTROL = '<html><body><img src="http://outside.invalid/picture.png"></body></html>'
PATIENCE = 120


def requests_of(page: Path) -> list[str]:
    """Open a page and return the first line of each request that leaves it, whatever its protocol.

    The browser is given a proxy that notes requests and answers none. That the proxy would notice is made sure with a
    page that does load something.

    Raises:
        CannotRunError: There is no browser.
        RuntimeError: The browser fails, or the page that loads something was not noticed.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise CannotRunError(f"none of {', '.join(BROWSERS)} is installed")
    with TemporaryDirectory() as name:
        control, empty = Path(name) / "control.html", Path(name) / "empty.html"
        control.write_text(CONTROL)
        empty.write_text("<html></html>")
        if not any("outside.invalid" in line for line in _opened(browser, control)):
            raise RuntimeError("a page that loads a picture from outside was not noticed")
        # What even these flags leave, which is not the same at every start.
        own = {_host(line) for _ in range(2) for line in _opened(browser, empty)}
    return [line for line in _opened(browser, page) if _host(line) not in own]


def _opened(browser: str, page: Path) -> list[str]:
    with _noting_proxy() as (address, noted), TemporaryDirectory() as profile:
        place = (f"--proxy-server={address}", "--proxy-bypass-list=<-loopback>", f"--user-data-dir={profile}")
        # No sandbox: it refuses to start as root, and the page is our own. Five seconds of the page's own time.
        how = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom")
        command = [browser, *how, *QUIET, *place, page.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode or "</html>" not in done.stdout:
            raise RuntimeError(f"{browser} ended with {done.returncode}: {done.stderr.strip()[-200:]}")
        return list(noted)


@contextmanager
def _noting_proxy() -> Iterator[tuple[str, list[str]]]:
    """Run a proxy that notes the first line of each request and hangs up."""
    noted: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            noted.append(self.rfile.readline(4096).decode(errors="replace").strip())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}", noted
        finally:
            server.shutdown()


def _host(line: str) -> str:
    """Return the host of `GET http://host/…` or `CONNECT host:443 …`; the line itself where it is neither."""
    place = line.split()[1] if len(line.split()) > 1 else line
    return place.partition("://")[2].partition("/")[0] or place
