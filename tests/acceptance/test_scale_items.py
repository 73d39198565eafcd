"""The items of `scale` can fail: each is shown something that is wrong."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from acceptance.claims import CannotRunError, Context

from acceptance import clicking, scale, scale_demo, scale_hub, scale_watch
from ironclip.data.fingerprints import file_sha256
from ironclip.publishing import MANIFEST


def test_items_and_claims_have_names_of_their_own():
    assert len({item.name for item in scale.ITEMS}) == len(scale.ITEMS)
    for item in scale.ITEMS:
        assert item.claims
        assert len({claim.name for claim in item.claims}) == len(item.claims)


@pytest.mark.parametrize("item", scale.ITEMS, ids=lambda item: item.name)
def test_modules_of_an_item_exist(item):
    assert [module for module in item.modules if find_spec(module) is None] == []


# The folder of a push


@pytest.fixture
def pushed(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("README.md", "config.json"):
        (folder / name).write_text(name)
    manifest = {file.name: file_sha256(file) for file in folder.iterdir()}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def test_a_folder_that_is_not_what_its_manifest_says_is_seen(pushed):
    whole = scale_hub._state(pushed)
    assert len(whole) == 3
    (pushed / "config.json").write_text("half")
    assert scale_hub._state(pushed) == {}
    (pushed / "config.json").unlink()
    assert scale_hub._state(pushed) == {}
    (pushed / MANIFEST).unlink()
    assert scale_hub._state(pushed) == {}


def test_the_short_form_kills_nothing(tmp_path):
    with pytest.raises(CannotRunError, match="times nothing"):
        next(scale_hub.push_killed.measure(Context(tmp_path, short=True)))


def test_kills_that_leave_half_a_folder_or_files_are_counted(tmp_path, monkeypatch):
    """A push that writes in place and is killed half way; and one whose second run leaves something beside it."""
    monkeypatch.setattr(scale_hub, "small_run", lambda folder: folder)

    def start(run, out, licence, *, kill_after):
        out.mkdir(parents=True, exist_ok=True)
        (out / "README.md").write_text(licence)
        if kill_after is None:
            (out / MANIFEST).write_text(json.dumps({"README.md": file_sha256(out / "README.md")}))
        else:
            (out.parent / ".out.unfinished").mkdir(exist_ok=True)
        return 0.0

    monkeypatch.setattr(scale_hub, "_start", start)
    found = {figure.claim: figure.value for figure in scale_hub.push_killed.measure(Context(tmp_path))}
    # Every kill finds the manifest of the other licence.
    assert found == {"whole": scale_hub.KILLS, "finished": 0, "left": scale_hub.KILLS}


def test_a_push_that_never_gives_a_whole_folder_ends_the_item(tmp_path, monkeypatch):
    monkeypatch.setattr(scale_hub, "small_run", lambda folder: folder)
    monkeypatch.setattr(scale_hub, "_start", lambda run, out, licence, **_: out.mkdir(parents=True) or 0.0)
    with pytest.raises(RuntimeError, match="does not agree with its own manifest"):
        next(scale_hub.push_killed.measure(Context(tmp_path)))


def test_the_cache_is_the_hubs_and_nothing_else_is_asked(pushed, tmp_path):
    from huggingface_hub import hf_hub_download

    environment = scale_hub.cached(pushed, tmp_path / "cache")
    assert environment["HF_HUB_OFFLINE"] == "1"
    path = hf_hub_download(
        scale_hub.REPOSITORY, "README.md", cache_dir=environment["HF_HUB_CACHE"], local_files_only=True
    )
    assert Path(path).read_text() == "README.md"


# Pages


@pytest.mark.parametrize(
    ("words", "fits"),
    [
        ('Fooled: "a" became "b" (57.2 % sure). Cost of the attack: 7 forward and 5 backward passes, 0.9 s. The', True),
        ('Not fooled: still "a" (9 % before, 8 % after). Another attack might. Cost of the attack: 1,026 forward and 0 '
         "backward passes, 12.00 s.", True),
        ("There is no image yet.", False),
        ('Fooled: "a" became "b" (57.2 % sure).', False),
    ],
)  # fmt: skip
def test_an_answer_names_outcome_and_cost(words, fits):
    assert (scale_demo.COST.match(words) is not None) is fits


class Socket:
    """A browser that gives prepared answers."""

    def __init__(self, *messages: dict) -> None:
        self.sent, self.messages = [], [{"id": 1, "result": {}}, *messages]

    def send(self, text: str) -> None:
        self.sent.append(json.loads(text))

    def recv(self, timeout: float) -> str:
        return json.dumps(self.messages.pop(0))


def request(address: str) -> dict:
    return {"method": "Network.requestWillBeSent", "params": {"request": {"url": address}}}


def test_requests_to_other_machines_are_seen():
    addresses = ("http://127.0.0.1:7860/a.js", "data:image/png;base64,AA", "http://outside.invalid/font.woff2")
    page = clicking.Tab(Socket(*map(request, addresses), {"id": 2, "result": {"result": {"value": 1}}}))
    assert page.asked_outside() == ["http://outside.invalid/font.woff2"]


def test_what_fails_in_the_browser_is_an_error(monkeypatch):
    page = clicking.Tab(Socket({"id": 2, "error": {"message": "no such method"}}))
    with pytest.raises(RuntimeError, match="no such method"):
        page.command("Page.nothing")
    page = clicking.Tab(Socket({"id": 2, "result": {"result": {}, "exceptionDetails": {"text": "Uncaught"}}}))
    with pytest.raises(RuntimeError, match="Uncaught"):
        page.value("nothing.at.all")
    monkeypatch.setattr(clicking, "PATIENCE", 0.0)
    page = clicking.Tab(Socket({"id": 2, "result": {"result": {"value": False}}}))
    with pytest.raises(TimeoutError, match=r"the page never had: document\.nothing"):
        page.wait_for("document.nothing")


def test_steps_are_counted_once_and_until_the_run_is_complete():
    class Page:
        def __init__(self):
            self.texts = ["3 of 9 steps", "3 of 9 steps", "7 of 9 steps", "", "9 of 9 steps complete"]

        def wait_for(self, script):
            pass

        def text(self, selector):
            return self.texts.pop(0)

    assert scale_watch._steps_told(Page()) == [3, 7, 9]


def test_without_gradio_the_demo_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(scale_demo, "find_spec", lambda name: None)
    with pytest.raises(CannotRunError, match="gradio is not installed"):
        next(scale_demo.demo.measure(Context(tmp_path)))


def test_a_browser_without_a_client_is_not_run(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "websockets.sync.client", None)
    with pytest.raises(CannotRunError, match="websockets is not installed"), clicking.tab():
        pass


def test_a_page_that_asks_for_something_fails_the_claim(tmp_path, monkeypatch):
    monkeypatch.setattr(scale_watch, "small_run", lambda folder: folder)
    monkeypatch.setattr(scale_watch, "ironclip", lambda *words: None)
    monkeypatch.setattr(scale_watch, "must", lambda done: done)
    monkeypatch.setattr(scale_watch, "requests_of", lambda page: ["GET http://outside.invalid/ HTTP/1.1"])
    (figure,) = scale_watch.watch.measure(Context(tmp_path))
    assert not scale_watch.watch.claims[0].bound.holds(figure.value)
