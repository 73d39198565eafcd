"""`ironclip watch`: the page of a training run while it trains."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ironclip.cli.output import say


def watch_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a training run.")],
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="Port on this machine; 0 takes a free one.")
    ] = 0,
    every: Annotated[
        int, typer.Option("--every", metavar="SECONDS", min=1, help="How often the page renews itself.")
    ] = 5,
    once: Annotated[bool, typer.Option("--once", help="Write RUN/watch.html as things stand, and exit.")] = False,
) -> None:
    """Show a training run while it trains.

    Serves a page with its curves to this machine until interrupted.
    """
    from ironclip.files import write_atomically
    from ironclip.report.run_page import render_run_page
    from ironclip.report.serving import ADDRESS, page_server

    if once:
        say(str(write_atomically(run / "watch.html", render_run_page(run, now=time.time()).encode())))
        return

    def page() -> str:
        return render_run_page(run, now=time.time(), refresh=every)

    page()  # what is wrong with the folder is said here, not in the browser
    with page_server(page, port) as server:
        say(f"http://{ADDRESS}:{server.server_port}  (Ctrl-C ends it)")
        server.serve_forever()
