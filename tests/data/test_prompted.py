"""Images with prompts: captions, questions of shapes, files of questions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from ironclip.data.bundled import shapes
from ironclip.data.prompted import open_prompted
from ironclip.errors import ConfigError, DataError, UnreadableSampleError

SCENES = "bundled:shapes?split=scenes_test"


@pytest.fixture
def questions(tmp_path):
    """Write a file of questions about one image, with the given lines put behind."""
    Image.fromarray(np.full((8, 8, 3), 128, dtype=np.uint8)).save(tmp_path / "a.png")
    good = {"image": "a.png", "question": "what is it?", "answers": ["gray", "gray", "a wall"]}

    def write(*lines):
        file = tmp_path / "asked.jsonl"
        file.write_text("\n".join([json.dumps(good), *lines]))
        return f"questions:{file}"

    return write


def test_a_question_of_shapes_has_its_right_answer_and_is_the_same_every_time():
    data = open_prompted(SCENES, "question", prompt="").limited(12)
    assert len(data) == 12
    for position in range(12):
        image = data[position]
        _, split, index = image.key.split("/")
        assert (image.prompt, image.references[0]) in shapes.questions(shapes.scene(split, int(index)))
        again = open_prompted(SCENES, "question", prompt="")
        assert again[again.keys.index(image.key)].prompt == image.prompt
    assert len({data[position].prompt for position in range(12)}) > 6
    few = open_prompted(SCENES, "question", prompt="").limited(4)
    assert set(few.keys) < set(data.keys)


def test_a_caption_is_asked_for_in_the_given_words():
    image = open_prompted(SCENES, "caption", prompt="Say it.").limited(1)[0]
    _, split, index = image.key.split("/")
    assert image.prompt == "Say it."
    assert image.references == (shapes.caption(shapes.scene(split, int(index))),)
    assert image.pixels.shape == (3, 32, 32)


def test_a_file_of_questions(questions):
    data = open_prompted(questions(), "question", prompt="")
    assert data.keys == ("asked/000000",)
    assert data[0].prompt == "what is it?"
    assert data[0].references == ("gray", "gray", "a wall")
    assert data[0].pixels.mean().item() == pytest.approx(128 / 255)
    more = open_prompted(
        questions(json.dumps({"image": "a.png", "question": "?", "answers": ["x"]})), "question", prompt=""
    )
    assert more.fingerprint != data.fingerprint


def test_an_image_that_changes_is_another_set(questions, tmp_path):
    before = open_prompted(questions(), "question", prompt="").fingerprint
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    assert open_prompted(questions(), "question", prompt="").fingerprint != before


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", r"asked.jsonl, line 2: "),
        ('{"image": "a.png", "question": "?"}', "line 2 lacks one of image, question, answers"),
        ('{"image": "a.png", "question": "?", "answers": []}', "or it is empty"),
        ('{"image": "a.png", "question": "?", "answers": [" "]}', "an answer is no text"),
        ('{"image": "b.png", "question": "?", "answers": ["x"]}', "Name images relative to the file"),
        ("[1]", "lacks one of"),
    ],
)
def test_a_line_that_is_not_understood_is_named(questions, line, words):
    with pytest.raises(DataError, match=words):
        open_prompted(questions(line), "question", prompt="")


def test_what_cannot_be_asked_is_refused(questions, tmp_path):
    with pytest.raises(ConfigError, match="brings no questions"):
        open_prompted("bundled:digits?split=test", "question", prompt="")
    with pytest.raises(ConfigError, match="captions are asked for"):
        open_prompted(questions(), "caption", prompt="")
    with pytest.raises(DataError, match="has no caption"):
        open_prompted("bundled:digits?split=test", "caption", prompt="")[0]
    with pytest.raises(DataError, match="there is no file"):
        open_prompted("questions:nowhere.jsonl", "question", prompt="")
    data = open_prompted(questions(), "question", prompt="")
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(UnreadableSampleError, match="asked/000000"):
        data[0]
    (tmp_path / "asked.jsonl").write_text("")
    with pytest.raises(DataError, match="is empty"):
        open_prompted(f"questions:{tmp_path}/asked.jsonl", "question", prompt="")
