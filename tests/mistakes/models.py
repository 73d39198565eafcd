"""Mistakes about models and their files."""

from __future__ import annotations

from pathlib import Path

from mistakes.case import Mistake, Scene

COLOURS = "--suite colours.yaml --data-root DATA"
WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"


def evaluated(title: str, source: str, names: str, **more: object) -> Mistake:
    return Mistake(title=title, words=f"eval {source} {COLOURS}", names=names, **more)


def spoilt(title: str, file: str, content: bytes, names: str) -> Mistake:
    """A model's folder with one file replaced."""
    return evaluated(
        title, "local-dir:mine", names, before=lambda scene: (scene.copy("MODEL", "mine") / file).write_bytes(content)
    )


def cut(name: str, size: int) -> object:
    def before(scene: Scene) -> None:
        path = scene.copy("MODEL", "mine") / name
        path.write_bytes(path.read_bytes()[:size])

    return before


def without(name: str) -> object:
    return lambda scene: (scene.copy("MODEL", "mine") / name).unlink()


def resized(scene: Scene) -> None:
    """A configuration of 32 pixels beside weights of 16."""
    path: Path = scene.copy("MODEL", "mine") / CONFIG
    path.write_text(path.read_text().replace('"image_size": 16', '"image_size": 32'))


MISTAKES = (
    evaluated("a model that is not there", "nowhere", "nowhere"),
    evaluated("a model's folder that is not there", "local-dir:nowhere", "nowhere"),
    evaluated("a kind of model misspelt", "openclip:ViT-B-32/openai", "openclip"),
    evaluated("a kind without a model", "local-dir:", "local-dir:"),
    evaluated("an architecture misspelt", "open_clip:ViT-B-23/openai", "ViT-B-23"),
    evaluated("weights misspelt", "open_clip:ViT-B-32/opneai", "opneai"),
    evaluated("an architecture without weights", "open_clip:ViT-B-32", "ViT-B-32"),
    evaluated("an architecture without its kind", "ViT-B-32", "ViT-B-32"),
    evaluated("more than a bundled model", "tiny:large", "tiny:large"),
    evaluated("a hub repository without its owner's sign", "hf-hub:a/b/c", "a/b/c"),
    evaluated("a file as a model's folder", "local-dir:colours.yaml", "colours.yaml"),
    evaluated(
        "an empty folder as a model", "local-dir:empty", "empty", before=lambda scene: (scene.here / "empty").mkdir()
    ),
    evaluated("a folder of images as a model", "DATA", "DATA"),
    evaluated("an evaluation as a model", "RUN", "RUN"),
    evaluated("a module that is not there", "python:no_such_module:make", "no_such_module"),
    evaluated(
        "a function that is not there",
        "python:made:build",
        "build",
        files={"made.py": "def make():\n    return None\n"},
    ),
    evaluated(
        "a function that makes nothing",
        "python:makes:make",
        "makes",
        files={"makes.py": "def make():\n    return None\n"},
    ),
    evaluated("weights without their configuration", "local-dir:mine", CONFIG, before=without(CONFIG)),
    evaluated("a configuration without its weights", "local-dir:mine", WEIGHTS, before=without(WEIGHTS)),
    evaluated("half a download of weights", "local-dir:mine", WEIGHTS, before=cut(WEIGHTS, 5000)),
    evaluated("half a download of a configuration", "local-dir:mine", CONFIG, before=cut(CONFIG, 40)),
    spoilt("an empty file as weights", WEIGHTS, b"", WEIGHTS),
    spoilt("a web page as weights", WEIGHTS, b"<!DOCTYPE html>\n<html><body>Sign in</body></html>\n", WEIGHTS),
    spoilt("a pointer as weights", WEIGHTS, b"version git-lfs/spec/v1\noid sha256:0123\nsize 19735114\n", WEIGHTS),
    spoilt("a list as configuration", CONFIG, b"[1, 2]", CONFIG),
    evaluated("a resolution that is not that of the weights", "local-dir:mine", "mine", before=resized),
    Mistake(
        title="a robust weight as a word in a source",
        words=f"eval run:TUNED?robust_weight=half {COLOURS}",
        names="half",
    ),
    Mistake(
        title="a checkpoint that is not there",
        words="import nowhere.pt there --format robustvlm --base QUICK",
        names="nowhere.pt",
    ),
    Mistake(
        title="a checkpoint of another project",
        words="import mine.pt there --format agft --base QUICK",
        names="mine.pt",
        before=lambda scene: saved(scene, "vision_encoder_state_dict"),
    ),
    Mistake(
        title="a checkpoint of nobody",
        words="import mine.pt there --format robustvlm --base QUICK",
        names="mine.pt",
        before=lambda scene: saved(scene, "weights"),
    ),
    Mistake(
        title="a text as checkpoint",
        words="import notes.pt there --format robustvlm --base QUICK",
        names="notes.pt",
        files={"notes.pt": "to do: tune"},
    ),
    Mistake(
        title="a base with another activation",
        words="import notes.pt there --format robustvlm --base local-dir:MODEL",
        names="MODEL",
        files={"notes.pt": "x"},
    ),
    Mistake(title="an export into a folder in use", words="export tiny DATA", names="DATA"),
    Mistake(title="an export over a file", words="export tiny colours.yaml", names="colours.yaml"),
    Mistake(title="an export of what is not there", words="export elsewhere there", names="elsewhere"),
)


def saved(scene: Scene, key: str) -> None:
    import torch

    torch.save({key: {"conv1.weight": torch.zeros(1)}}, scene.here / "mine.pt")
