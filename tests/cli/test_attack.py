"""`ironclip attack`: one image, in the terminal and as a page."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

WORDS = "red thing, green thing,blue thing"


@pytest.fixture
def attacked(ironclip, data_root, model_folder):
    image = data_root / "colours" / "test" / "red" / "00.png"

    def run(*words):
        return ironclip("attack", image, "--classes", WORDS, "--model", f"local-dir:{model_folder}", *words)

    return run


def pictures(page: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), dtype=np.int64) for data in found]


def test_shows_the_attack_and_writes_a_page_that_needs_nothing_else(attacked, tmp_path):
    result = attacked("--eps", "16/255")
    assert result.code == 0, result.err
    assert "Adversary: Linf 16/255, model input 16x16, white-box" in result.err
    head, _, first, *_ = result.out.splitlines()
    assert head.split()[:2] == ["look", "answer"]
    assert first.startswith("0 ")
    assert "forward and" in result.out
    page = (tmp_path / "attack.html").read_text(encoding="utf-8")
    assert "00.png" in page
    assert "Linf 16/255" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<script" not in page
    clean, _, last, *_ = pictures(page)
    assert np.abs(clean - last).max() <= 16


def test_json_agrees_with_itself(attacked, tmp_path):
    small, large = (
        json.loads(attacked("--json", "--eps", eps, "--out", f"{eps.partition('/')[0]}.html").out)
        for eps in ("0", "64/255")
    )
    assert not small["broken"]
    assert small["clean"] == pytest.approx(small["attacked"])
    assert sum(large["attacked"].values()) == pytest.approx(1)
    assert large["clean"] == small["clean"]
    own = max(large["clean"], key=large["clean"].get)
    assert large["broken"] == (max(large["attacked"], key=large["attacked"].get) != own)
    assert large["broken"]
    assert "After a change of at most" in (tmp_path / "64.html").read_text(encoding="utf-8")
    assert "has not led it away" in (tmp_path / "0.html").read_text(encoding="utf-8")


def test_names_are_escaped(ironclip, data_root, model_folder, tmp_path):
    image = data_root / "colours" / "test" / "red" / "00.png"
    result = ironclip(
        "attack", image, "--classes", "<b>red</b>,blue", "--model", f"local-dir:{model_folder}", "--out", "p.html"
    )
    assert result.code == 0, result.err
    assert "<b>red</b>" not in (tmp_path / "p.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--classes", "cat"], 'classes to choose from: 1. "cat" alone is no choice.\nGive at least two'),
        (["--classes", "cat,,"], "classes to choose from: 1."),
        (["--classes", "cat,Cat"], '"cat" stands twice among the classes.'),
        (["--classes", "a,b", "--eps", "4"], "threat.eps is 4"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(ironclip, data_root, words, message):
    result = ironclip("attack", data_root / "colours" / "test" / "red" / "00.png", *words)
    assert result.code == 2
    assert message in result.err


def test_a_file_that_is_no_image_is_refused(ironclip, tmp_path):
    (tmp_path / "words.png").write_text("no image")
    for name, message in (("words.png", "is no readable image"), ("none.png", "there is no file none.png")):
        result = ironclip("attack", name, "--classes", "a,b")
        assert result.code == 2
        assert message in result.err


def test_corruptions_patches_and_words_are_rows_of_an_evaluation(ironclip, suite_file, data_root, model_folder):
    attacks = ["corruption:kind=fog,severity=5", "corruption:kind=fog,severity=1", "patch:steps=2", "typographic"]
    words = [word for attack in attacks for word in ("--attack", attack)]
    result = ironclip(
        "eval", f"local-dir:{model_folder}", "--suite", suite_file(["blue", "green", "red"]), "--data-root", data_root,
        "--eps", "1", "--limit", "20", "--json", *words,
    )  # fmt: skip
    assert result.code == 0, result.err
    rows = json.loads(result.out)["rows"]
    assert [row["attack"] for row in rows] == ["CORRUPTION", "CORRUPTION", "PATCH-2", "TYPOGRAPHIC"]
    assert len({row["unit"] for row in rows}) == 4
    for row in rows:
        assert row["totals"]["n_invalid"] == 0
        assert row["robust_accuracy"]["estimate"] <= row["clean_accuracy"]["estimate"]
