"""A hundred ordinary mistakes: exit code, one line that names the value given, one line that says what to do."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from made_up_colours import COLOURS, colour_suite, two_steps
from mistakes import data, models, options, recipes, runs
from mistakes.case import Mistake, Scene

MESSAGES: dict[str, str] = yaml.safe_load((Path(recipes.__file__).parent / "messages.yaml").read_text())
CATALOGUE = [*recipes.MISTAKES, *options.MISTAKES, *models.MISTAKES, *data.MISTAKES, *runs.MISTAKES]


@pytest.fixture
def scene(tmp_path, places, recipe_file, suite_file, monkeypatch) -> Iterator[Scene]:
    with ExitStack() as afterwards:
        yield Scene(tmp_path, places, recipe_file, suite_file, monkeypatch, afterwards)


@pytest.fixture(scope="session")
def places(tmp_path_factory, model_folder, data_root) -> dict[str, Path]:
    """A model, images, a model with OpenAI's activation, two evaluations of another seed, and a training run."""
    from ironclip.attacks.base import ATTACKS
    from ironclip.attacks.threat_model import ThreatModel
    from ironclip.evaluation.evaluate import EvaluationRequest, evaluate_suite
    from ironclip.training.engine import train
    from ironclip.training.recipe import check_recipe

    root = tmp_path_factory.mktemp("places")
    quick = shutil.copytree(model_folder, root / "quick")
    config = json.loads((quick / "open_clip_config.json").read_text())
    config["model_cfg"]["quick_gelu"] = True
    (quick / "open_clip_config.json").write_text(json.dumps(config))
    folders = {"MODEL": model_folder, "DATA": data_root, "QUICK": quick}
    for seed, name in enumerate(("RUN", "OTHER")):
        request = EvaluationRequest(
            model=f"local-dir:{model_folder}",
            suite=str(colour_suite(root, list(COLOURS))),
            data_root=str(data_root),
            attacks=(ATTACKS.create("fgsm"),),
            threats=(ThreatModel(eps="1/255"),),
            out=root / name,
            seed=seed,
            limit=2,
            verdicts=False,
        )
        folders[name] = evaluate_suite(request).path
    recipe = check_recipe(two_steps(model_folder))
    return folders | {"TUNED": train(recipe, root / "tuned", data_root=str(data_root))}


def test_there_are_a_hundred_and_their_messages_differ():
    titles = [mistake.title for mistake in CATALOGUE]
    assert len(titles) >= 100
    assert sorted(MESSAGES) == sorted(titles)
    assert len(set(MESSAGES.values())) == len(titles)
    assert [mistake.title for mistake in CATALOGUE if mistake.names not in MESSAGES[mistake.title]] == []


@pytest.mark.parametrize("mistake", CATALOGUE, ids=lambda mistake: mistake.title)
def test_mistake(mistake: Mistake, scene: Scene, ironclip):
    words = mistake.prepare(scene)
    before = set(scene.here.iterdir())
    result = ironclip(*words)
    assert result.code == mistake.code, result.err
    assert result.out == ""
    assert "Traceback" not in result.err
    assert "a bug of IronCLIP" not in result.err
    assert set(scene.here.iterdir()) - before == {scene.here / name for name in mistake.leaves}
    problem, *advice = parts(result.err)
    assert mistake.names in scene.neutral(problem)
    assert re.fullmatch(as_pattern(MESSAGES[mistake.title]), scene.neutral(problem))
    assert len(advice) in (1, 2)  # in a recipe, what would be right there, and how to try it
    assert all(advice)


def parts(said: str) -> list[str]:
    """Split what was said into what is wrong and what to do; where options are wrong, advice comes first."""
    lines = said.strip().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("Error: "))
    advice = lines[1:2] if lines[0].startswith("Usage: ") else []
    return [lines[start].removeprefix("Error: "), *lines[start + 1 :], *advice]


def as_pattern(message: str) -> str:
    return ".*".join(re.escape(part) for part in message.split("…"))
