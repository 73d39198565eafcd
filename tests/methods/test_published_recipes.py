"""Every published recipe runs: two steps, and an evaluation of what they made (D9 of the methods plan)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from ironclip.attacks.driver import run_attack
from ironclip.attacks.objectives import Misclassify
from ironclip.attacks.pgd import PGD
from ironclip.data.images import stack_images
from ironclip.data.sources import open_dataset
from ironclip.methods.base import METHODS
from ironclip.models.sources import load_model, save_model
from ironclip.models.zero_shot import ZeroShotClassifier
from ironclip.training.engine import train
from ironclip.training.recipe import load_recipe
from made_up_shards import labelled, write_shard

NAMES = ("cat", "dog", "bird")
FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = [path for path in sorted(FOLDER.glob("*/*.yaml")) if path.parent.name in METHODS.names()]


@pytest.fixture(scope="session")
def toy(tiny_clip, tmp_path_factory):
    """Give the overrides that put a tiny model and 12 made-up images into a recipe, and cut it to two steps."""
    root = tmp_path_factory.mktemp("toy")
    save_model(tiny_clip(), root / "model")
    write_shard(root / "data" / "train-0000.tar", labelled(0, 12, 3, 32))
    (root / "data" / "classes.txt").write_text("\n".join(NAMES))
    (root / "data" / "templates.json").write_text('["a photo of a {}."]')
    changes = {"model": f"local-dir:{root / 'model'}", "data.train": f"wds:{root / 'data'}?split=train"}
    changes |= {"data.hold_out": 4, "validation.samples": 2, "validation.attack": "{name: pgd, steps: 2}"}
    settings = {"steps": 2, "epochs": "null", "batch_size": 4, "warmup_steps": 1, "accumulate": 1}
    changes |= {f"optimisation.{name}": value for name, value in settings.items()}
    return [f"{place}={value}" for place, value in changes.items()]


def run(path, toy, out):
    """Train for two steps and attack what came out; return the shares of right answers, clean and attacked."""
    offline = ["text_attack={name: synonyms}"] if "bert_attack" in path.read_text() else []  # there is no BERT here
    recipe = load_recipe(path, [*toy, *offline])
    train(recipe, out)
    data = open_dataset(recipe.data.train)
    samples = [data[row] for row in range(4)]
    pixels = stack_images([sample.pixels for sample in samples], "toy")
    classifier = ZeroShotClassifier(load_model(f"run:{out}"), NAMES, ["a photo of a {}."])
    objective = Misclassify(classifier, classifier.logits(pixels).argmax(dim=1))
    outcome = run_attack(PGD(steps=2), objective, pixels, [s.key for s in samples], recipe.build_threat(), seed=0)
    return [1 - broken.float().mean().item() for broken in (outcome.clean.broken, outcome.broken)]


def test_there_are_recipes_of_methods():
    assert {"sim_clip", "tga_zsr", "comp_tga", "ft_adv", "clean"} <= {path.parent.name for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_d09_a_recipe_runs_two_steps_and_an_evaluation(path, toy, tmp_path):
    clean, robust = run(path, toy, tmp_path / "run")
    assert clean == 1
    assert 0 <= robust <= 1
    assert not math.isnan(robust)


def test_d09_a_name_that_is_not_there_does_not_go_unnoticed(toy, tmp_path, monkeypatch):
    def planted(self, views):
        logis_scale = views.logit_scale
        return {"ce": logis_scale * logit_scale}  # noqa: F821  # the defect

    path = next(path for path in RECIPES if path.parent.name == "tga_zsr")
    monkeypatch.setattr(METHODS.get("tga_zsr"), "loss", planted)
    with pytest.raises(NameError, match="logit_scale"):
        run(path, toy, tmp_path / "run")
