"""`ironclip watch` and `ironclip train --track`, as users type them."""

from __future__ import annotations

import pytest


@pytest.fixture
def run(ironclip, recipe_file, data_root, tmp_path):
    result = ironclip("train", recipe_file(), "--data-root", data_root, "--out", "run")
    assert result.code == 0, result.err
    return tmp_path / "run"


def test_once_writes_the_page_of_the_run(ironclip, run):
    result = ironclip("watch", "run", "--once")
    assert (result.code, result.out) == (0, "run/watch.html\n")
    html = (run / "watch.html").read_text()
    assert "2 of 2" in html
    assert "<b>complete</b>" in html
    assert "Held-out images" in html


def test_the_page_is_served_until_interrupted(ironclip, run, monkeypatch):
    seen = []

    class Server:
        server_port = 4711

        def __init__(self, page, port):
            seen.append((page(), port))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def serve_forever(self):
            raise KeyboardInterrupt

    monkeypatch.setattr("ironclip.report.serving.page_server", Server)
    result = ironclip("watch", "run", "--port", 4711)
    assert result.code == 130
    assert result.out.startswith("http://127.0.0.1:4711")
    assert (seen[0][1], "2 of 2" in seen[0][0]) == (4711, True)


def test_what_is_no_run_is_said_at_once(ironclip):
    result = ironclip("watch", "nowhere")
    assert result.code == 2
    assert "nowhere is no training run: it has no run.json." in result.err


def test_an_unknown_tracker_is_refused_before_the_training(ironclip, recipe_file, data_root, tmp_path):
    result = ironclip("train", recipe_file(), "--data-root", data_root, "--out", "run", "--track", "tensorbord")
    assert result.code == 2
    assert 'unknown tracker "tensorbord". Did you mean "tensorboard"?' in result.err
    assert not (tmp_path / "run").exists()
