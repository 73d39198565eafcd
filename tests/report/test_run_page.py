"""The page of a training run: what it shows is what the log holds, at every moment of the run."""

from __future__ import annotations

import json
import re
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ironclip.errors import ConfigError, DataError
from ironclip.report.run_page import render_run_page
from ironclip.report.serving import page_server
from ironclip.report.training_log import POINTS, read_training_log, thinned

RECORD = {
    "steps": 40,
    "threat_caption": "Linf 2/255, native, white-box",
    "recipe": {"title": "A <script>run</script> & more", "optimisation": {"batch_size": 8}},
}


def step_line(step: int, **more: object) -> dict:
    figures = {"epoch": 0, "lr": 0.1, "loss": 1 / step, "gradient_norm": 2.0, "images_per_second": 16.0}
    return {"step": step, **figures, **more}


def validation_line(step: int, gap: float | None = 0.05, robust: float | None = 0.4) -> dict:
    figures = {"samples": 50, "clean_accuracy": 0.8, "robust_accuracy": robust, "embedding_cosine": 0.9}
    trained = None if robust is None or gap is None else robust + gap
    return {"step": step, "validation": {**figures, "train_attack_accuracy": trained, "overfitting_gap": gap}}


@pytest.fixture
def run(tmp_path):
    """Write a run folder from the lines of its log."""

    def make(*lines: dict, complete: bool = False, cut: str = "") -> Path:
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        (folder / "run.json").write_text(json.dumps(RECORD))
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + cut)
        if complete:
            (folder / "result.json").write_text("{}")
        return folder

    return make


def page(folder: Path, **options) -> str:
    return render_run_page(folder, **{"now": (folder / "log.jsonl").stat().st_mtime + 7, **options})


def titles(html: str) -> list[str]:
    return re.findall(r"<figcaption>(.*?)</figcaption>", html)


def test_a_run_under_way_says_how_far_it_is_and_asks_again(run):
    html = page(run(*(step_line(step) for step in range(1, 11)), validation_line(10), cut='{"step": 1'), refresh=5)
    assert "10 of 40" in html
    assert "25.0 %" in html
    assert "<b>7 s</b><span>since the last line of the log" in html
    assert "<b>15 s</b><span>to the end at this rate" in html  # 30 steps of 8 images at 16 a second
    assert "40.0 %</b><span>of 50 held-out images right under attack" in html
    assert '<meta http-equiv="refresh" content="5">' in html
    assert "Catastrophic" not in html


def test_a_complete_run_asks_no_more(run):
    html = page(run(step_line(40), complete=True), refresh=5)
    assert "<b>complete</b>" in html
    assert "refresh" not in html
    assert "to the end" not in html


def test_before_the_first_step_there_is_a_page(run):
    html = page(run(), refresh=5)
    assert "0 of 40" in html
    assert "no step is logged yet" in html
    assert titles(html) == []


def test_panels_are_those_of_what_was_logged(run):
    labelled = [step_line(step, ce=1.0, attack_accuracy=0.5) for step in (1, 2)]
    assert titles(page(run(*labelled, validation_line(2)))) == [
        "Loss",
        "Training batches",
        "Held-out images",
        "Overfitting gap",
        "Embeddings under attack",
        "Gradient norm",
        "Learning rate",
    ]
    unlabelled = {"samples": 4, "clean_accuracy": None, "robust_accuracy": None, "overfitting_gap": None}
    cosine = {"step": 2, "validation": {**unlabelled, "train_attack_accuracy": None, "embedding_cosine": 0.5}}
    html = page(run(step_line(1), step_line(2), cosine))
    assert titles(html) == ["Loss", "Embeddings under attack", "Gradient norm", "Learning rate"]
    assert "right under attack" not in html


def test_curves_are_the_logged_figures(run):
    lines = [step_line(1), step_line(2, loss=None), step_line(3, ce=0.2, kl=0.1), validation_line(3)]
    log = read_training_log(run(*lines))
    assert log.curve("loss") == [(1, 1.0), (3, 1 / 3)]
    assert log.held_out("robust_accuracy") == [(3, 0.4)]
    assert (log.skipped, log.terms) == (1, ["ce", "kl"])
    assert "1 of 3 steps had a loss that was not finite" in page(run(*lines))


def test_long_curves_are_thinned_to_means():
    points = [(float(step), float(step % 2)) for step in range(4 * POINTS)]
    short = thinned(points)
    assert len(short) == POINTS
    assert all(value == 0.5 for _, value in short)
    assert [step for step, _ in short] == [4 * part + 1.5 for part in range(POINTS)]
    assert thinned(points[:POINTS]) == points[:POINTS]


@pytest.mark.parametrize(("gap", "named"), [(0.29, False), (0.31, True), (None, False)])
def test_catastrophic_overfitting_is_named(run, gap, named):
    html = page(run(step_line(1), validation_line(1, gap=gap)))
    assert ("<strong>Catastrophic overfitting</strong>" in html) is named
    assert ("+31.0 points between them" in html) is named


def test_the_page_is_well_formed_and_loads_nothing(run):
    html = page(run(step_line(1), validation_line(1)))
    assert "<script" not in html
    assert "A &lt;script&gt;run&lt;/script&gt; &amp; more" in html
    assert re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|\#)|url\(\s*["']?(?!data:|\#)|@import""", html) == []
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    open_tags: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "path", "use", "rect", "img", "br"):
                open_tags.append(tag)

        def handle_startendtag(self, tag, attrs):
            pass

        def handle_endtag(self, tag):
            if tag not in ("path", "use", "rect"):
                assert open_tags.pop() == tag

    Reader().feed(html)
    assert open_tags == []


def test_what_is_no_run_is_refused(tmp_path, run):
    with pytest.raises(DataError, match=r"nowhere is no training run: it has no run.json"):
        render_run_page(tmp_path / "nowhere", now=0)
    folder = run(step_line(1))
    (folder / "log.jsonl").write_text(json.dumps(step_line(1)) + "\nnot json\n")
    with pytest.raises(DataError, match=r"line 2 of .*log.jsonl is not JSON.\nGo on with the run"):
        page(folder)
    (folder / "run.json").write_text('{"model": {}, "suite": null}')
    with pytest.raises(DataError, match="is a run, but not of training"):
        page(folder)
    (folder / "run.json").write_text("{")
    with pytest.raises(DataError, match=r"run\.json is not JSON"):
        page(folder)


# Served


@contextmanager
def served(make):
    with page_server(make, 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def asked(address: str, **headers: str) -> tuple[int, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(address, headers=headers), timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_each_visit_sees_the_run_as_it_stands(run):
    folder = run(step_line(1))
    with served(lambda: page(folder, refresh=5)) as address:
        assert "1 of 40" in asked(address)[1]
        run(step_line(1), step_line(2))
        status, html = asked(address)
        assert (status, "2 of 40" in html) == (200, True)
        assert asked(f"{address}/run.json")[0] == 404
        assert asked(address, Host="attacker.example")[0] == 404
        (folder / "run.json").unlink()
        status, text = asked(address)
        assert (status, "it has no run.json" in text) == (503, True)


def test_a_port_that_is_taken_is_named():
    with (
        page_server(str, 0) as server,
        pytest.raises(ConfigError, match=rf"port {server.server_address[1]} is taken.\nGive another --port"),
    ):
        page_server(str, server.server_address[1])
