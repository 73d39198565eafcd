"""One page that is made anew each time somebody looks, served to this machine only."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ironclip.errors import ConfigError, IronClipError

ADDRESS = "127.0.0.1"
# What a browser calls this machine. A page of another site that is led here by its own name gets nothing.
_OURSELVES = ("127.0.0.1", "localhost")


def page_server(page: Callable[[], str], port: int) -> ThreadingHTTPServer:
    """Return a server of a page; it listens already, and answers within `serve_forever`.

    Args:
        page: Makes the page; an error of ours is shown in words.
        port: Of this machine; 0 takes a free one.

    Raises:
        ConfigError: The port is taken or may not be used.
    """
    # Browsers open connections ahead of need, so each has a thread; drawing is not made for several of them.
    one_at_a_time = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
            if host not in _OURSELVES or self.path != "/":
                return self.answer(HTTPStatus.NOT_FOUND, "text/plain", "There is one page, at /.")
            try:
                with one_at_a_time:
                    content = page()
            except IronClipError as error:
                return self.answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", str(error))
            return self.answer(HTTPStatus.OK, "text/html", content)

        def answer(self, status: HTTPStatus, kind: str, text: str) -> None:
            content = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing: a page that refreshes itself would fill the terminal."""

    try:
        return ThreadingHTTPServer((ADDRESS, port), Handler)
    except OverflowError:
        raise ConfigError(
            f"port {port}, expected a number from 0 to 65535.", "Leave it out to take a free one."
        ) from None
    except OSError as error:
        why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise ConfigError(f"port {port} {why}.", "Give another --port; 0 takes a free one.") from None
