from __future__ import annotations

import pytest
import torch

from ironclip.attacks.base import ATTACKS
from ironclip.attacks.driver import run_attack
from ironclip.attacks.objectives import Misclassify
from ironclip.attacks.targets import choose_targets
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError, ShapeError
from ironclip.randomness import SampleRandom
from made_up_classifiers import AffineTask

LOGITS = torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 5.0, -1.0, 2.0], [7.0, 7.0, 1.0, 1.0]])
LABELS = torch.tensor([0, 3, 2])
STREAMS = SampleRandom(0, ["a", "b", "c"])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("next", [2, 1, 0]), ("least-likely", [3, 2, 3]), ("fixed:0", [1, 0, 0]), ("fixed:3", [3, 0, 3])],
)
def test_rules_by_hand(rule, expected):
    assert choose_targets(rule, LOGITS, LABELS, STREAMS).tolist() == expected


def test_random_targets_are_wrong_uniform_and_the_samples_own():
    keys, labels = [str(index) for index in range(3000)], torch.arange(3000) % 4
    targets = choose_targets("random", torch.zeros(3000, 4), labels, SampleRandom(0, keys))
    assert (targets != labels).all()
    counts = torch.bincount((targets - labels) % 4, minlength=4)[1:]
    assert (counts - 1000).abs().max() < 130  # five standard deviations
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(0))
    shuffled = SampleRandom(0, keys).take(order)
    assert torch.equal(choose_targets("random", torch.zeros(3000, 4), labels[order], shuffled), targets[order])


def test_a_targeted_game_ends_in_the_target_and_only_there():
    task, threat = AffineTask(4, seed=0), ThreatModel(eps="40/256", goal="targeted")
    targets = choose_targets("next", task.classifier.logits(task.pixels).detach(), task.labels, STREAMS)
    objective = Misclassify(task.classifier, task.labels, "ce_t", targets=targets)
    outcome = run_attack(ATTACKS.create("pgd"), objective, task.pixels, task.keys, threat, seed=0)
    answers = task.classifier.logits(outcome.adversarial).argmax(dim=1)
    assert torch.equal(outcome.broken, answers == targets)
    assert outcome.broken.sum() > outcome.clean.broken.sum()


def test_errors():
    with pytest.raises(ConfigError, match=r'no rule "nearest" for targets\.\nGive one of next, least-likely, random'):
        choose_targets("nearest", LOGITS, LABELS, STREAMS)
    with pytest.raises(ConfigError, match="the target is class 4 of 4"):
        choose_targets("fixed:4", LOGITS, LABELS, STREAMS)
    with pytest.raises(ShapeError, match="at least two classes"):
        choose_targets("next", LOGITS[:, :1], LABELS, STREAMS)
