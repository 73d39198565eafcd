from __future__ import annotations

import pytest
import torch

from ironclip.attacks.objectives import Misclassify
from ironclip.attacks.patch import Patch
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError
from ironclip.randomness import SampleRandom
from made_up_classifiers import AffineTask

ANYTHING = ThreatModel(eps="1")


def attacked(task, attack, seed=0):
    objective = Misclassify(task.classifier, task.labels, "margin")
    return attack.perturb(objective, task.pixels, ANYTHING, SampleRandom(seed, task.keys))


def test_only_a_square_of_the_asked_area_changes():
    task = AffineTask(2, seed=0, side=8)
    found = attacked(task, Patch(share=9 / 64, steps=5))
    places = set()
    for before, after in zip(task.pixels, found, strict=True):
        rows, columns = torch.where((before != after).any(dim=0))
        assert rows.max() - rows.min() < 3
        assert columns.max() - columns.min() < 3
        places.add((int(rows.min()), int(columns.min())))
    assert len(places) > 10


def test_on_an_affine_model_it_fills_its_square_with_the_best_colours():
    task = AffineTask(2, seed=1, side=8)
    found = attacked(task, Patch(share=1 / 4, steps=40))
    slope = (task.weight[1 - task.labels] - task.weight[task.labels]).view_as(task.pixels)
    best = torch.where(slope > 0, 1.0, 0.0)
    for row in range(len(found)):
        rows, columns = torch.where((found[row] != task.pixels[row]).any(dim=0))
        window = (
            slice(None),
            slice(int(rows.min()), int(rows.max()) + 1),
            slice(int(columns.min()), int(columns.max()) + 1),
        )
        leads = slope[row][window] != 0
        assert torch.equal(found[row][window][leads], best[row][window][leads])


def test_each_restart_tries_another_place():
    task = AffineTask(2, seed=0, side=8)
    first, second = (attacked(task, Patch(share=1 / 64, steps=2), seed) for seed in (0, 1))
    changed = [(found != task.pixels).any(dim=1).flatten(1) for found in (first, second)]
    assert (changed[0] & changed[1]).any(dim=1).float().mean() < 0.2


def test_a_share_of_one_is_the_whole_image():
    task = AffineTask(2, seed=0)
    found = attacked(task, Patch(share=1, steps=40))
    slope = (task.weight[1 - task.labels] - task.weight[task.labels]).view_as(task.pixels)
    assert torch.equal(found[slope > 0], torch.ones_like(found[slope > 0]))


def test_errors():
    for wrong, words in (({"share": 0.0}, "share is 0"), ({"steps": 0}, "0 steps"), ({"rel_step_size": 0.0}, "rel_")):
        with pytest.raises(ConfigError, match=words):
            Patch(**wrong)
    with pytest.raises(ConfigError, match=r"which l2 does not\.\nUse norm linf, eps 1"):
        Patch().check(ThreatModel(norm="l2", eps="1"))
