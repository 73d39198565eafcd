"""The hub, played by a server on this machine: what it answers becomes a model, or an error in words."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from ironclip.errors import WeightsError
from ironclip.models.sources import CONFIG, WEIGHTS, load_model

COMMIT = "0" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[Path]:
    """Serve a folder of repositories as the hub would; `org/closed` is forbidden, of `org/half-closed` the contents."""
    root = tmp_path / "repositories"

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, *, with_body: bool) -> None:
            repository, _, filename = self.path.strip("/").partition("/resolve/main/")
            file = root / repository / filename
            if repository == "org/closed" or (repository == "org/half-closed" and with_body):
                return self.refuse(403, "")
            if not (root / repository).is_dir():
                return self.refuse(404, "RepoNotFound")
            if not file.is_file():
                return self.refuse(404, "EntryNotFound")
            content = file.read_bytes()
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{filename}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_body:
                self.wfile.write(content)
            return None

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    yield root
    server.shutdown()
    server.server_close()


def serve(hub: Path, repository: str, place: Path) -> None:
    (hub / repository).parent.mkdir(parents=True, exist_ok=True)
    place.rename(hub / repository)


def test_a_repository_is_downloaded(hub, folder, tiny_clip, pixels):
    serve(hub, "org/clip", folder())
    model = load_model("hf-hub:org/clip")
    torch.testing.assert_close(model.embed_image(pixels), tiny_clip().embed_image(pixels), rtol=0, atol=0)


@pytest.mark.usefixtures("hub")
def test_a_repository_that_does_not_exist_is_named():
    with pytest.raises(WeightsError, match=r"the hub shows no repository org/nothing.\n.*hf auth login"):
        load_model("hf-hub:org/nothing")


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        (CONFIG, r"hf-hub:org/clip has no open_clip_config.json.\n.*open_clip's or transformers' CLIP layout"),
        (WEIGHTS, r"hf-hub:org/clip has no open_clip_model.safetensors or open_clip_pytorch_model.bin"),
    ],
)
def test_a_file_that_the_repository_lacks_is_named(hub, folder, gone, words):
    place = folder()
    (place / gone).unlink()
    serve(hub, "org/clip", place)
    with pytest.raises(WeightsError, match=words):
        load_model("hf-hub:org/clip")


@pytest.mark.usefixtures("hub")
def test_a_hub_that_refuses_is_not_taken_for_a_missing_file():
    with pytest.raises(WeightsError, match=r"in the local cache, and the hub gives none: .*403"):
        load_model("hf-hub:org/closed")


def test_a_download_that_fails_half_way_is_named(hub, folder):
    serve(hub, "org/half-closed", folder())
    with pytest.raises(
        WeightsError, match=r"open_clip_config.json of hf-hub:org/half-closed could not be downloaded: .*403"
    ):
        load_model("hf-hub:org/half-closed")
