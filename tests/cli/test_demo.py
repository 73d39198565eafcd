"""`ironclip demo`, as far as it goes without a page."""

from __future__ import annotations

import sys

import pytest


def test_without_a_robust_model_it_says_how_to_get_one(ironclip):
    result = ironclip("demo")
    assert result.code == 2
    assert (
        "there is no robust model in quickstart/train/tecoa.\nMake one in some minutes with: ironclip quickstart"
        in result.err
    )


def test_without_gradio_it_names_the_extra(ironclip, model_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    source = f"local-dir:{model_folder}"
    result = ironclip("demo", "--original", source, "--robust", source)
    assert result.code == 1
    assert (
        'ironclip demo needs the package gradio, which is not installed.\nInstall it with: pip install "ironclip[demo]"'
        in result.err
    )


def test_the_page_has_both_models_and_the_asked_port(ironclip, model_folder, monkeypatch):
    asked = []
    monkeypatch.setattr("ironclip.demo.page.build_page", lambda models, shown, folder: asked.append((models, shown)))
    monkeypatch.setattr("ironclip.demo.page.launch", lambda page, port: asked.append(port))
    source = f"local-dir:{model_folder}"
    result = ironclip("demo", "--original", source, "--robust", source, "--port", 4711, "--seed", 5)
    assert result.code == 0, result.err
    (models, shown), port = asked
    assert list(models.models) == [f"original: {source}", f"robust: {source}"]
    assert (models.seed, port, len(shown)) == (5, 4711, 8)


def test_the_default_is_the_model_of_the_quickstart(ironclip, model_folder, tmp_path, monkeypatch):
    folder = tmp_path / "quickstart" / "train" / "tecoa"
    (folder / "model").mkdir(parents=True)
    for name in ("run.json", "result.json"):
        (folder / name).write_text("{}")
    for file in model_folder.iterdir():
        (folder / "model" / file.name).symlink_to(file)
    asked = []
    monkeypatch.setattr("ironclip.demo.page.build_page", lambda models, *_: asked.append(list(models.models)))
    monkeypatch.setattr("ironclip.demo.page.launch", lambda page, port: None)
    assert ironclip("demo", "--original", f"local-dir:{model_folder}").code == 0
    assert asked[0][1] == "robust: run:quickstart/train/tecoa"


@pytest.mark.parametrize("port", ["0", "65536"])
def test_a_port_that_is_none_is_refused(ironclip, port):
    assert ironclip("demo", "--port", port).code == 2
