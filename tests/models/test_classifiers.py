"""Classifiers from sources: CLIP models, a user's own Python code, and what identifies them in results."""

from __future__ import annotations

import functools
import hashlib
import sys

import pytest
import torch
from torch import nn

from ironclip.errors import ConfigError, ShapeError
from ironclip.models.sources import load_classifier, model_identity
from ironclip.models.straight_through import StraightThrough
from ironclip.models.zero_shot import PythonClassifier, ZeroShotClassifier

NAMES, TEMPLATES = ["cat", "dog", "cup"], ["a photo of a {}."]

MODULE = """
import torch

number = 3
network = torch.nn.Flatten()

def module():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 3))

def function():
    return lambda pixels: pixels.mean((2, 3))

def late():
    import neighbour
    return neighbour.model

def hungry(path):
    return path

def nothing():
    return None
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Write a user's modules into the current folder; imports and the search path are undone afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    (tmp_path / "my_models.py").write_text(MODULE)
    (tmp_path / "neighbour.py").write_text("def model(pixels):\n    return pixels.amax((2, 3))\n")
    (tmp_path / "needs_more.py").write_text("import package_that_nobody_has\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "inner.py").write_text("from my_models import function\n")
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("my_models", "neighbour", "needs_more", "package"):
            del sys.modules[name]


def load(source: str) -> PythonClassifier:
    classifier = load_classifier(source, NAMES, TEMPLATES)
    assert isinstance(classifier, PythonClassifier)
    return classifier


def test_a_clip_source_becomes_a_zero_shot_classifier(saved_clip, pixels):
    classifier = load_classifier(f"local-dir:{saved_clip}", NAMES, TEMPLATES, fast=False)
    assert isinstance(classifier, ZeroShotClassifier)
    assert classifier.class_names == tuple(NAMES)
    assert classifier.model.fast_path == "switched off"
    assert classifier.logits(pixels).shape == (4, 3)
    assert model_identity(classifier) == model_identity(classifier.model) == classifier.model.spec.sha256


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("python:my_models:function", lambda x: x.mean((2, 3))),
        ("python:my_models:late", lambda x: x.amax((2, 3))),
        ("python:package.inner:function", lambda x: x.mean((2, 3))),
    ],
)
def test_a_factory_in_the_current_folder_makes_a_classifier(pixels, source, expected):
    torch.testing.assert_close(load(source).logits(pixels), expected(pixels))


@pytest.mark.usefixtures("mine")
def test_a_factory_may_return_a_module(pixels):
    classifier = load("python:my_models:module")
    assert classifier.logits(pixels).shape == (4, 3)
    assert len(list(classifier.parameters())) == 2


def test_a_factory_may_return_a_classifier_of_ours(pixels):
    """A defence that is wrapped as a classifier, such as TTC, comes through `python:` too."""
    defence = StraightThrough(PythonClassifier(lambda x: x.mean((2, 3))), lambda x: (8 * x).floor() / 8)
    found = PythonClassifier(defence, class_names=["a", "b", "c"]).logits(pixels)
    torch.testing.assert_close(found, ((8 * pixels).floor() / 8).mean((2, 3)))


def test_a_file_here_hides_no_installed_package(mine):
    (mine / "torch.py").write_text("raise RuntimeError('the wrong torch')\n")
    (mine / "math.py").write_text("raise RuntimeError('the wrong math')\n")
    load("python:my_models:function")


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("python:my_models", r"names no factory.\n.*python:package.module:factory"),
        ("python::function", "names no factory"),
        ("python:your_models:function", r'no module "your_models" among .*\n.*folder that holds it'),
        ("python:package.outer:function", r'no module "package.outer"'),
        ("python:needs_more:function", r'"needs_more" imports "package_that_nobody_has".*\n.*pip install'),
        ("python:my_models:funktion", r'my_models.py has no "funktion". Did you mean "function"'),
        ("python:my_models:number", r"is a int, not a factory"),
        ("python:my_models:network", r"is a Flatten, not a factory.\n.*def make\(\): return network"),
        ("python:my_models:hungry", r"cannot be called without arguments: .*path"),
        ("python:my_models:nothing", r"returned None, which is not callable.\n.*logits \[B, C\]"),
        ("python:", "ends after its kind"),
    ],
)
def test_python_that_makes_no_classifier_is_refused(source, words):
    with pytest.raises(ConfigError, match=words):
        load(source)


@pytest.mark.usefixtures("mine")
def test_the_number_of_logits_has_to_be_that_of_the_class_names(pixels):
    classifier = load_classifier("python:my_models:function", ["cat", "dog"], TEMPLATES)
    with pytest.raises(ShapeError, match="returned 3 logits an image for 2 class names"):
        classifier.logits(pixels)


# Identities


def test_a_module_is_identified_by_its_weights():
    def make(seed: int) -> PythonClassifier:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return PythonClassifier(nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.BatchNorm1d(3)))

    first, same, other = make(0), make(0), make(1)
    assert model_identity(first) == model_identity(same) != model_identity(other)
    with torch.no_grad():
        first.call[2].running_mean[0] = 1e-3  # statistics count, as they change logits
    assert model_identity(first) != model_identity(same)


def test_a_function_is_identified_by_its_source_file(mine):
    expected = hashlib.sha256((mine / "my_models.py").read_bytes()).hexdigest()
    assert model_identity(load("python:my_models:function")) == expected
    assert model_identity(load("python:package.inner:function")) == expected
    neighbour = load("python:my_models:late")
    assert model_identity(neighbour) == hashlib.sha256((mine / "neighbour.py").read_bytes()).hexdigest()
    bound = PythonClassifier(functools.partial(neighbour.call))
    assert model_identity(bound) == model_identity(neighbour)


def test_what_has_neither_weights_nor_source_is_refused():
    with pytest.raises(ConfigError, match=r"has no source file that could identify it.\n.*Define it in a file"):
        model_identity(PythonClassifier(torch.relu))
