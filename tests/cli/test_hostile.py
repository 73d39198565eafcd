"""Files that were made to do harm: refused in words, no code run, and nothing written outside the run folder."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from ironclip.data.classes import words_sha256
from made_up_colours import COLOURS, colour_suite, two_steps
from made_up_shards import encoded, labelled, tar_bytes

WEIGHTS, PICKLED, CONFIG = "open_clip_model.safetensors", "open_clip_pytorch_model.bin", "open_clip_config.json"
MARK = "was-run"
DEEP = 100_000


class RunsCode:
    """A pickle of this would make a folder when it is loaded."""

    def __reduce__(self):
        return os.mkdir, (MARK,)


def tree(folder: Path) -> dict[str, str]:
    """Everything below a folder: names, and hashes of contents."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


@pytest.fixture
def harmless(ironclip, tmp_path) -> Callable[..., str]:
    """Run a command that is to be refused, and return what it said."""

    def run(*words: object, code: int = 2, out: str = "out") -> str:
        before = tree(tmp_path)
        result = ironclip(*words, "--out", out) if out else ironclip(*words)
        assert result.code == code, result.err
        assert "Traceback" not in result.err
        assert "a bug of IronCLIP" not in result.err
        after = tree(tmp_path)
        assert {name: what for name, what in after.items() if name.split("/")[0] != out} == before
        assert MARK not in after
        return result.err

    return run


# Weights


def nan_weights(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["visual.proj"][0, 0] = float("nan")
    save_file(tensors, folder / WEIGHTS)


def infinite_width(folder: Path) -> None:
    config = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(config.replace('"embed_dim": 32', '"embed_dim": 1e400'))


def header_of(content: bytes, length: int | None = None) -> bytes:
    """A safetensors file of a header alone, which says how long it is."""
    return struct.pack("<Q", len(content) if length is None else length) + content


def beyond(length: int) -> bytes:
    return json.dumps({"visual.proj": {"dtype": "F32", "shape": [length], "data_offsets": [0, 4 * length]}}).encode()


def pickled(content: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / PICKLED).write_bytes(content)

    return write


def zipped(content: object) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        torch.save(content, folder / PICKLED)

    return write


def replaced(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (pickled(pickle.dumps(RunsCode(), protocol=2)), "no PyTorch file"),
        (zipped({"state_dict": {}, "extra": RunsCode()}), "which could run code when loaded"),
        (pickled(b"\x80\x02" + 20_000 * b"("), "no PyTorch file"),
        (replaced(WEIGHTS, pickle.dumps(RunsCode())), "no safetensors file"),
        (replaced(WEIGHTS, b"<!DOCTYPE html><html><script>alert(1)</script></html>"), "is an HTML page"),
        (nan_weights, "holds NaN or infinite weights: visual.proj"),
        (replaced(WEIGHTS, header_of(b"{}", 2**62)), "no safetensors file"),
        (replaced(WEIGHTS, header_of(DEEP * b"[" + DEEP * b"]")), "no safetensors file"),
        (replaced(WEIGHTS, header_of(beyond(2**50))), "no safetensors file"),
        (replaced(CONFIG, b'{"model_cfg": ' + DEEP * b"[" + DEEP * b"]" + b"}"), "is not JSON"),
        (infinite_width, "Correct its model_cfg"),
    ],
    ids=[
        "pickle",
        "pickle in a zip",
        "pickle of brackets",
        "pickle as safetensors",
        "web page",
        "nan",
        "endless header",
        "deep header",
        "tensor beyond the file",
        "deep configuration",
        "infinite configuration",
    ],
)
def test_weights(spoil, words, harmless, model_folder, data_root, tmp_path):
    spoil(shutil.copytree(model_folder, tmp_path / "mine"))
    suite = colour_suite(tmp_path, list(COLOURS))
    said = harmless("eval", "local-dir:mine", "--suite", suite, "--data-root", data_root)
    assert words in said


def test_a_published_checkpoint_that_would_run_code(harmless, model_folder, tmp_path):
    base = shutil.copytree(model_folder, tmp_path / "base")
    config = json.loads((base / CONFIG).read_text())
    config["model_cfg"]["quick_gelu"] = True
    (base / CONFIG).write_text(json.dumps(config))
    torch.save({"conv1.weight": RunsCode()}, tmp_path / "fare.pt")
    said = harmless("import", "fare.pt", "out", "--format", "robustvlm", "--base", "local-dir:base", out="")
    assert "which could run code when loaded" in said


# Shards and images


def links() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind, target in (
            ("000.png", tarfile.SYMTYPE, "/etc/passwd"),
            ("001.png", tarfile.LNKTYPE, "../secret.png"),
            ("002.png", tarfile.CHRTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    return buffer.getvalue()


def backwards() -> bytes:
    """A header with a negative size, at which Python's own reader goes round in a circle."""
    header = bytearray(tar_bytes({"000.png": b"x" * 512})[:512])
    header[124:136] = b"\xff" * 10 + b"\xfc\x00"  # -1024, base 256
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    first = tar_bytes(labelled(0, 1)).rstrip(b"\0")
    return first + bytes(-len(first) % 512) + bytes(header) + bytes(1024)


def long_names(count: int) -> bytes:
    """Headers that each announce the name of the next, of which there is none."""
    buffer = io.BytesIO()
    info = tarfile.TarInfo("././@LongLink")
    info.type = tarfile.GNUTYPE_LONGNAME
    info.size = 5
    return count * (info.tobuf(tarfile.GNU_FORMAT) + b"name\0".ljust(512, b"\0")) + buffer.getvalue()


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG that says how large it is, with further chunks and no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunk(one[:4], one[4:]) for one in chunks) + chunk(b"IEND", b"")


BOMB = gzip.compress(bytes(120 * 2**20), compresslevel=1, mtime=0)
TEXT_BOMB = b"zTXtbomb\0\0" + zlib.compress(bytes(2**26), 9)
CLIMBING = {"../../outside.png": encoded(1), "/absolute.png": encoded(2), "a/../../up.png": encoded(3)}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("test-0.tar", tar_bytes(CLIMBING), "3 samples: a path that leads out of the shard; left out (../../outside"),
        ("test-0.tar", links(), "2 samples: a link instead of a file; left out (000.png, 001.png)"),
        ("test-0.tar", backwards(), "a member of -1024 bytes"),
        ("test-0.tar", long_names(3000), "is damaged (tar: "),
        ("test-0.tar.gz", BOMB, "it grows to more than 50 times its size"),
        ("test-0.tar", tar_bytes({"0.png": encoded(1), "0.json": DEEP * b"["}), "an annotation that cannot be read"),
        ("test-0.tar", tar_bytes({"0.png": png(50_000, 50_000), "0.cls": b"0"}), "could be decompression bomb"),
        ("test-0.tar", tar_bytes({"0.png": png(8, 8, TEXT_BOMB), "0.cls": b"0"}), "data too large"),
    ],
    ids=["climbing", "links", "backwards", "long names", "gzip bomb", "deep json", "gigapixel", "text bomb"],
)
def test_shards(name, content, words, harmless, model_folder, tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / name).write_bytes(content)
    data = {"train": "wds:shards", "class_names": ["a"], "templates": ["{}"], "hold_out": 0}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(two_steps(model_folder) | {"data": data}))
    assert words in harmless("train", "recipe.yaml", "--strict")


def test_a_gigapixel_image_is_not_decoded(harmless, tmp_path):
    (tmp_path / "huge.png").write_bytes(png(100_000, 100_000))
    said = harmless("attack", "huge.png", "--classes", "cat,dog", out="page.html")
    assert re.search(r"huge\.png is no readable image: .*10000000000 pixels", said)


def test_templates_that_nest(harmless, model_folder, tmp_path):
    (tmp_path / "birds" / "a").mkdir(parents=True)
    (tmp_path / "birds" / "a" / "1.png").write_bytes(encoded(1))
    (tmp_path / "birds" / "templates.json").write_bytes(DEEP * b"[")
    data = {"train": "folder:birds", "hold_out": 0}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(two_steps(model_folder) | {"data": data}))
    assert "templates.json is not JSON" in harmless("train", "recipe.yaml")


def test_a_run_that_names_code_as_its_original(harmless, model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "run" / "model")
    (tmp_path / "code.py").write_text(f"import os\nos.mkdir({MARK!r})\n")
    record = {"command": "x", "model": {"source": "python:code:make", "sha256": "0"}}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    assert "run names python:code:make, which would run code" in harmless(
        "export", "run", "out", "--robust-weight", "0.5", out=""
    )


# Recipes

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join(10 * [f'*a{n - 1}'])}]\n" for n in range(1, 10)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join(10 * [f'*a{n - 1}'])}]}}\n" for n in range(1, 10))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (f"title: !!python/object/apply:os.mkdir [{MARK}]", "could not determine a constructor for the tag"),
        (f"title: !!python/object/new:os.mkdir [{MARK}]", "could not determine a constructor for the tag"),
        ("title: !!python/name:os.system", "could not determine a constructor for the tag"),
        (LAUGHS, "says more than 500,000 values"),
        (MERGES, "merge keys (<<) are not read"),
        ("a: &a [*a]", "nests deeper than 40 levels"),
        (DEEP * "[", "is not YAML"),
        (60 * "[" + 60 * "]", "nests deeper than 40 levels"),
        ("seed: " + 5000 * "9", "is not YAML"),
        ("title: 2020-13-45", "is not YAML"),
        ("title: !!int ''", "is not YAML"),
        ("title: !!bool maybe", "is not YAML"),
        ("title: " + 2**22 * "a", "too many for settings"),
        ("threat: {eps: 1e999999999}\nmethod: {name: tecoa}", "recipe.data: Field required"),
    ],
    ids=lambda value: " ".join(value[:30].split()),
)
def test_recipes(content, words, harmless, tmp_path):
    (tmp_path / "recipe.yaml").write_text(content)
    assert words in harmless("validate", "recipe.yaml", out="")


def test_a_run_json_that_nests(harmless, tmp_path):
    (tmp_path / "run.json").write_text(DEEP * "[")
    assert "run.json is not JSON" in harmless("validate", "run.json", out="")
    (tmp_path / "run").mkdir()
    shutil.move(tmp_path / "run.json", tmp_path / "run")
    assert "run/run.json cannot be read" in harmless("report", "run")


# Words


NAMES = ["<script>alert(1)</script>", '=HYPERLINK("x")|a', "`</code><b>[x](javascript:alert(1))\x1b[2J"]


def test_names_with_markup_stay_names(ironclip, model_folder, data_root, tmp_path):
    suite = colour_suite(tmp_path, NAMES)
    content = yaml.safe_load(suite.read_text())
    content["title"] = content["data"][0]["title"] = "<b>Colours</b> | *all*"
    suite.write_text(yaml.safe_dump(content))
    name = "<img src=x onerror=alert(1)> | `x`\x1b[2J"
    words = ("--attack", "fgsm", "--eps", "1/255", "--limit", 4, "--name", name, "--save", "all")
    done = ironclip(
        "eval", f"local-dir:{model_folder}", "--suite", suite, "--data-root", data_root, *words, "--out", "r"
    )
    assert done.code == 0, done.err
    assert "\x1b" not in done.out + done.err
    assert "\\x1b[2J" in ironclip("report", "missing\x1b[2J").err
    assert ironclip("report", "r", "--out", "page", "--title", NAMES[0]).code == 0
    page, text = (tmp_path / "page" / "report.html").read_text(), (tmp_path / "page" / "report.md").read_text()
    for bad in ("<script", "<img src=x", "<b>Colours"):
        assert bad not in page
        assert not re.search(rf"(?<!\\){re.escape(bad)}", text), bad
    assert "javascript:" not in re.findall(r'(?:href|src)="([^"]*)"', page)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == len(re.findall(r"(?<!\\)\|", rows[0])) for row in rows[:3])


def test_the_page_of_one_image_escapes_its_classes(ironclip, data_root, tmp_path):
    image = data_root / "colours" / "test" / "red" / "00.png"
    assert ironclip("attack", image, "--classes", f"{NAMES[0]},cat", "--out", "page.html").code == 0
    assert "<script" not in (tmp_path / "page.html").read_text()


def test_the_hash_of_a_class_list_covers_its_markup():
    assert words_sha256(NAMES) != words_sha256([NAMES[0].replace("<", "&lt;"), *NAMES[1:]])
