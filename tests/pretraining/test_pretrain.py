"""The whole of it through the command line: words, images, a folder that stock open_clip loads; killed and resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import open_clip
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import ironclip as ironclip_package
from ironclip.cli import main
from ironclip.models.sources import load_model
from ironclip.pretraining.pretrain import embed_texts
from ironclip.pretraining.recipe import load_pretrain_recipe

transformers = pytest.importorskip("transformers")

NOUNS = ("cat", "dog", "bird", "wolf", "table", "picture", "tree", "stone", "cloud", "river", "house", "boat")
UNSEEN = "whale"


@pytest.fixture(scope="module")
def language_root(tmp_path_factory):
    """Hold `wordnet`, `encoder` (random BERT of one layer) and `clip-text`, all very small."""
    root = tmp_path_factory.mktemp("language")
    (root / "wordnet").mkdir()
    for part, sign in (("noun", "n"), ("adj", "a"), ("verb", "v")):
        words = (*NOUNS, UNSEEN) if part == "noun" else (f"{part} word",)
        lines = [f"{word.replace(' ', '_')} {sign} 1 0 1 0 00000001  \n" for word in words]
        (root / "wordnet" / f"index.{part}").write_text("".join(["  1 the licence\n", *lines]))
    glosses = [f"0000000{row} 03 n 01 {word} 0 000 | something like a {word}" for row, word in enumerate(NOUNS)]
    (root / "wordnet" / "data.noun").write_text("\n".join(["  1 the licence", *glosses]) + "\n")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(root / "encoder")
    (root / "encoder" / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizer(str(root / "encoder" / "vocab.txt")).save_pretrained(root / "encoder")
    names = [*NOUNS, UNSEEN, *(f"thing {letter}" for letter in letters)]
    rows = torch.randn(len(names), 24, generator=torch.Generator().manual_seed(0))
    (root / "clip-text").mkdir()
    save_file(
        {"made_up": torch.nn.functional.normalize(rows, dim=1).half()}, root / "clip-text" / "embeddings.safetensors"
    )
    (root / "clip-text" / "names.json").write_text(json.dumps({"made_up": names}))
    return root


@pytest.fixture
def own_root(data_root, tmp_path):
    """Copy the data, with a fifth class of which there are no images and must be none."""
    root = shutil.copytree(data_root, tmp_path / "data")
    classes = [*json.loads((root / "toy" / "classes.json").read_text()), {"label": 4, "name": UNSEEN}]
    (root / "toy" / "classes.json").write_text(json.dumps(classes))
    unseen = {"note": "drawn by lot", "toy": [{"label": 4, "name": UNSEEN}]}
    (root / "unseen_classes.json").write_text(json.dumps(unseen))
    return root


@pytest.fixture
def recipe_file(language_root, tmp_path):
    """Write a recipe of eight distillation steps and ten image steps."""
    content = {
        "title": "ten steps",
        "architecture": {
            "embed_dim": 8,
            "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
        },
        "unseen": "{data}/unseen_classes.json",
        "language": {
            "wordnet": str(language_root / "wordnet"),
            "encoder": str(language_root / "encoder"),
            "clip_text": str(language_root / "clip-text"),
            "targets": {"kind": "both", "width": 8},
            "distillation": {"steps": 8, "batch_size": 16, "warmup_steps": 2, "checkpoint_every": 3},
        },
        "images": {
            "sources": {
                "toy": {
                    "source": "wds:{data}/toy?split=train",
                    "synonyms": "{data}/toy",
                    "per_batch": 6,
                    "mix": 0.5,
                    "hold_out": 8,
                },
                "said": {"source": "wds:{data}/said?split=train", "per_batch": 2, "captions": True},
            },
            "steps": 10,
            "warmup_steps": 2,
            "checkpoint_every": 3,
        },
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def ironclip(*words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return ended.value.code


def test_a_model_comes_out_that_stock_open_clip_loads(recipe_file, own_root, tmp_path, capsys):
    out = tmp_path / "run"
    assert ironclip("pretrain", recipe_file, "--data-root", own_root, "--out", out) == 0
    assert "local-dir:" in capsys.readouterr().out
    assert (out / "model" / "open_clip_model.safetensors").stat().st_size < 25e6
    assert {tensor.dtype for name, tensor in load_file(out / "model" / "open_clip_model.safetensors").items()
            if tensor.ndim} == {torch.float16}  # fmt: skip
    ours = load_model(f"local-dir:{out / 'model'}")
    stock, _, _ = open_clip.create_model_and_transforms(f"local-dir:{out / 'model'}")
    tokens = open_clip.get_tokenizer(f"local-dir:{out / 'model'}")(["a cat", "a photo of a wolf."])
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        image = stock.eval().encode_image(ours.spec.preprocessing.normalise(pixels))
        torch.testing.assert_close(ours.embed_image(pixels), image, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.embed_text(tokens), stock.encode_text(tokens), rtol=1e-4, atol=1e-4)
    result, record = json.loads((out / "result.json").read_text()), json.loads((out / "run.json").read_text())
    assert result["steps"] == 10
    assert 0 <= result["validation"]["toy"] <= 1
    assert record["recipe"] == load_pretrain_recipe(recipe_file).model_dump(mode="json")
    assert record["data"] == {"toy": 32, "said": 10}


def test_it_learns_no_unseen_name(recipe_file, own_root, tmp_path):
    out = tmp_path / "run"
    assert ironclip("pretrain", recipe_file, "--data-root", own_root, "--out", out) == 0
    texts = [text for path in (out / "language").glob("sentence-*.json") for text in json.loads(path.read_text())]
    assert {"cat", "small wolf", "river", "number 3 on a table", "red cat", "something like a river"} <= set(texts)
    assert not [text for text in texts if UNSEEN in text]


@pytest.mark.parametrize("place", ["wordnet", "encoder", "clip_text"])
def test_what_is_missing_is_named(place, recipe_file, own_root, tmp_path, capsys):
    change = f"language.{place}={tmp_path / 'nowhere'}"
    code = ironclip("pretrain", recipe_file, "--data-root", own_root, "--set", change, "--out", tmp_path / "run")
    said = capsys.readouterr().err
    assert code in (1, 2)
    assert str(tmp_path / "nowhere") in said
    assert "Traceback" not in said


def test_texts_have_the_same_rows_in_any_company(tiny_clip):
    model = tiny_clip()
    texts = ["a cat", "a very long sentence about a cat that sits on a table", "dog", "A Cat"]
    rows = embed_texts(model, texts)
    torch.testing.assert_close(rows[0], rows[3])
    torch.testing.assert_close(embed_texts(model, texts[2:3])[0], rows[2], rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(rows[:3], model.text_features(texts[:3]), rtol=1e-4, atol=1e-5)


RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "pretrain").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_pretraining_is_valid(path, capsys):
    assert ironclip("validate", path) == 0
    assert "is a recipe of pre-training: tiny" in capsys.readouterr().out


def test_an_unknown_key_names_the_nearest(recipe_file, capsys):
    assert ironclip("validate", recipe_file, "--set", "images.sources.toy.per_bath=3") == 2
    assert 'unknown key "images.sources.toy.per_bath". Did you mean "per_batch"?' in capsys.readouterr().err
    assert ironclip("validate", recipe_file, "--set", "language.distillation.step=3") == 2
    assert 'unknown key "language.distillation.step". Did you mean "steps"' in capsys.readouterr().err


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_in_the_same_weights(recipe_file, own_root, tmp_path):
    words = [sys.executable, "-m", "ironclip", "pretrain", str(recipe_file), "--data-root", str(own_root), "--out"]
    environment = os.environ | {"PYTHONPATH": str(Path(ironclip_package.__file__).parents[1])}

    def start(out):
        return subprocess.Popen([*words, str(out)], env=environment)

    assert start(tmp_path / "whole").wait() == 0
    for phase, step in (("language", 4), ("images", 2), ("images", 7)):
        process, log = start(tmp_path / "killed"), tmp_path / "killed" / phase / "log.jsonl"
        while process.poll() is None and not (log.is_file() and log.read_text().count("\n") >= step):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert start(tmp_path / "killed").wait() == 0
    one, other = (load_file(tmp_path / run / "model" / "open_clip_model.safetensors") for run in ("whole", "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)
