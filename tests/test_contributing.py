"""The whole files of CONTRIBUTING.md do what the page says that they do."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ironclip.attacks.base import ATTACKS
from ironclip.attacks.driver import run_attack
from ironclip.attacks.objectives import Misclassify
from ironclip.attacks.threat_model import ThreatModel
from ironclip.data.sources import _READERS, _Reader, open_dataset
from ironclip.methods.base import METHODS
from ironclip.models.sources import save_model
from ironclip.models.zero_shot import ZeroShotClassifier
from ironclip.suites.suite import load_suite
from ironclip.training.engine import train
from ironclip.training.recipe import check_recipe

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
FILES = dict(re.findall(r"```(?:python|yaml)\n# (src/\S+)\n(.*?)```", PAGE, re.DOTALL))
NAMES = ["cat", "dog"]


def load(path: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Import a file of the page as the module that it would be; registries are put back afterwards."""
    for registry in (METHODS, ATTACKS):
        assert registry.names()
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
        monkeypatch.setattr(registry, "_tags", dict(registry._tags))
    file = folder / Path(path).name
    file.write_text(FILES[path])
    name = path.removeprefix("src/").removesuffix(".py").replace("/", ".")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pets(tmp_path):
    noise = np.random.default_rng(0)
    for name in NAMES:
        folder = tmp_path / "pets" / "test" / name
        folder.mkdir(parents=True)
        for index in range(8):
            Image.fromarray(noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return tmp_path


def test_the_page_holds_a_file_of_each_kind():
    assert sorted(path.split("/")[2] for path in FILES) == ["attacks", "data", "methods", "suites", "suites"]


@pytest.mark.parametrize("path", [path for path in FILES if path.endswith(".py")])
def test_the_files_pass_the_linter(path, tmp_path):
    file = tmp_path / Path(path).name
    file.write_text(FILES[path].lstrip("\n"))
    settings = Path(__file__).parents[1] / "pyproject.toml"
    for command in (["check"], ["format", "--check"]):
        words = [sys.executable, "-m", "ruff", *command, "--config", str(settings), str(file)]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_method_trains(tiny_clip, pets, tmp_path, monkeypatch):
    load("src/ironclip/methods/mixed.py", tmp_path, monkeypatch)
    original = tiny_clip()
    save_model(original, tmp_path / "model")
    recipe = check_recipe(
        {
            "method": {"name": "mixed", "clean_weight": 0.3},
            "model": f"local-dir:{tmp_path / 'model'}",
            "data": {"train": "folder:{data}/pets?split=test", "templates": ["a photo of a {}."], "hold_out": 4},
            "optimisation": {"lr": 0.01, "steps": 1, "batch_size": 6},
        }
    )
    run = train(recipe, tmp_path / "run", data_root=str(pets))
    logged = yaml.safe_load((run / "log.jsonl").read_text().splitlines()[0])
    assert logged["loss"] == pytest.approx(logged["clean"] + logged["adv"], rel=1e-5)
    assert logged["clean"] / 0.3 < logged["adv"] / 0.7, "attacked images are harder"


def test_the_attack_attacks(tiny_clip, pixels, tmp_path, monkeypatch):
    load("src/ironclip/attacks/noise.py", tmp_path, monkeypatch)
    classifier = ZeroShotClassifier(tiny_clip(), ["a", "b", "c"], ["{}"])
    labels = classifier.logits(pixels).argmax(dim=1)
    keys = [f"image/{index}" for index in range(len(pixels))]
    threat = ThreatModel(norm="linf", eps="16/255")
    attack = ATTACKS.create("noise", {"restarts": "20"})
    outcome = run_attack(attack, Misclassify(classifier, labels), pixels, keys, threat, seed=0)
    assert threat.contains(outcome.adversarial, pixels).all()
    assert not torch.equal(outcome.adversarial, pixels)
    again = run_attack(attack, Misclassify(classifier, labels), pixels, keys, threat, seed=0)
    assert torch.equal(outcome.adversarial, again.adversarial)


def test_the_reader_reads(tmp_path, monkeypatch):
    module = load("src/ironclip/data/npz.py", tmp_path, monkeypatch)
    line = re.search(r'"npz": _Reader\((\w+), (\w+)\)', PAGE)
    assert line
    monkeypatch.setitem(_READERS, "npz", _Reader(*(getattr(module, name) for name in line.groups())))
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    (tmp_path / "pets").mkdir()
    np.savez(tmp_path / "pets" / "val.npz", images=images, labels=[0, 1, 1], class_names=NAMES)
    dataset = open_dataset(f"npz:{tmp_path}/pets?split=val")
    assert list(dataset.keys) == ["pets/val/000000", "pets/val/000001", "pets/val/000002"]
    sample = dataset[2]
    assert sample.label == 1
    torch.testing.assert_close(sample.pixels, torch.from_numpy(images[2]).permute(2, 0, 1) / 255)


def test_the_suite_opens(pets, tmp_path):
    for path, text in FILES.items():
        if path.endswith(".yaml"):
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    (entry,) = load_suite(tmp_path / "src/ironclip/suites/pets.yaml", pets).entries
    opened = entry.open(strict=True)
    assert opened.class_names == ("cat", "dog")
    assert len(opened.dataset) == 16
