"""The objective of docs/attacks.md, as it stands there: five lines that every attack and the driver can play."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from ironclip.attacks.base import ATTACKS
from ironclip.attacks.driver import run_attack
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError
from made_up_classifiers import AffineTask
from quick_attacks import quick

PAGE = Path(__file__).parents[2] / "docs" / "attacks.md"
THREAT = ThreatModel(eps="8/256")


@pytest.fixture(scope="module")
def unsure():
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0]
    names: dict = {"__name__": __name__}
    exec(code, names)
    return names["Unsure"]


@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd", "corners"])
def test_attacks_play_it_and_the_driver_judges_by_its_rule(name, unsure):
    task = AffineTask(3, seed=0)
    outcome = run_attack(quick(name), unsure(task.classifier, task.labels), task.pixels, task.keys, THREAT, seed=0)
    sure = task.classifier.logits(outcome.adversarial).softmax(dim=1).gather(1, task.labels[:, None])[:, 0]
    assert torch.equal(outcome.broken, sure < 0.5)
    before = outcome.clean.broken
    assert 0 < before.sum() < outcome.broken.sum()
    assert (outcome.final.value >= outcome.clean.value).all()


def test_the_ascent_ends_where_the_label_is_least_likely(unsure):
    """For two classes the worst point of an affine model is a corner."""
    task = AffineTask(2, seed=1, inner=True)
    objective = unsure(task.classifier, task.labels)
    found = run_attack(quick("pgd"), objective, task.pixels, task.keys, THREAT, seed=0)
    own, other = task.weight[task.labels], task.weight[1 - task.labels]
    corner = task.pixels - THREAT.radius * (own - other).sign().view_as(task.pixels)
    standing = ~found.broken
    assert standing.any()
    moved = (own != other).view_as(task.pixels)[standing]
    torch.testing.assert_close(found.adversarial[standing][moved], corner[standing][moved])


def test_what_it_does_not_define_is_refused_in_words(unsure):
    task = AffineTask(3, seed=0)
    objective = unsure(task.classifier, task.labels)
    for name, words in (("apgd_t", "has no classes to aim at"), ("embedding", "embeds no images")):
        with pytest.raises(ConfigError, match=f"Unsure {words}"):
            run_attack(ATTACKS.create(name), objective, task.pixels, task.keys, THREAT, seed=0)
