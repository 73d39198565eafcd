"""The lists by name: which attacks, with which settings, in which order (evaluation plan 2.8)."""

from __future__ import annotations

import pytest
import torch

from ironclip.attacks.autoattack import attack_list, attack_lists
from ironclip.attacks.base import ATTACKS
from ironclip.attacks.objectives import CLASSIFICATION_LOSSES, Misclassify
from ironclip.attacks.sequence import run_sequence
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import RegistryError
from made_up_classifiers import AffineTask

# List: label, registered name, and the settings that matter, written down anew from the plan.
PLAN = {
    "standard": [
        ("APGD-CE", "apgd", {"steps": 100, "loss": "ce", "restarts": 1, "eot": 1}),
        ("APGD-T", "apgd_t", {"steps": 100, "targets": 9, "loss": "dlr", "restarts": 1}),
        ("FAB-T", "fab_t", {"steps": 100, "targets": 9, "restarts": 1}),
        ("Square", "square", {"queries": 5000, "initial_share": 0.8, "rescale_schedule": False, "restarts": 1}),
    ],
    "plus": [
        ("APGD-CE", "apgd", {"steps": 100, "loss": "ce", "restarts": 5}),
        ("APGD-DLR", "apgd", {"steps": 100, "loss": "dlr", "restarts": 5}),
        ("FAB", "fab", {"steps": 100, "restarts": 5}),
        ("Square", "square", {"queries": 5000, "restarts": 1}),
        ("APGD-T", "apgd_t", {"steps": 100, "targets": 9, "restarts": 1}),
        ("FAB-T", "fab_t", {"steps": 100, "targets": 9, "restarts": 1}),
    ],
    "rand": [
        ("APGD-CE", "apgd", {"steps": 100, "loss": "ce", "restarts": 1, "eot": 20}),
        ("APGD-DLR", "apgd", {"steps": 100, "loss": "dlr", "restarts": 1, "eot": 20}),
    ],
    "pair": [
        ("APGD-CE", "apgd", {"steps": 100, "loss": "ce", "restarts": 5, "eot": 1}),
        ("APGD-T", "apgd_t", {"steps": 100, "targets": 9, "loss": "dlr", "restarts": 1}),
    ],
    "trust": [
        ("APGD-CE", "apgd", {"steps": 100, "loss": "ce", "restarts": 5}),
        ("APGD-T", "apgd_t", {"steps": 100, "targets": 9, "loss": "dlr"}),
        ("FAB-T", "fab_t", {"steps": 50, "targets": 3, "restarts": 1}),
        ("Square", "square", {"queries": 1000}),
    ],
    "quick": [
        ("FGSM", "fgsm", {"steps": 1, "rel_step_size": 1.0}),
        ("PGD-20", "pgd", {"steps": 20, "keep": "best"}),
        ("Noise", "corners", {"queries": 2}),
    ],
}


def test_the_lists_are_those_of_the_plan():
    assert set(attack_lists()) == set(PLAN)
    for name, expected in PLAN.items():
        found = attack_list(name)
        assert found.name == name
        assert [(member.label, member.attack.name) for member in found.members] == [line[:2] for line in expected]
        for member, (label, _, settings) in zip(found.members, expected, strict=True):
            for key, value in settings.items():
                assert getattr(member.attack, key) == value, (name, label, key)
            assert member.attack.loss in CLASSIFICATION_LOSSES


@pytest.mark.parametrize("name", PLAN)
def test_a_list_can_be_told_from_an_attack_and_its_members_from_each_other(name):
    found = attack_list(name)
    labels = [member.label for member in found.members]
    assert len(set(labels)) == len(labels)
    assert name not in labels
    assert name not in ATTACKS.names()
    assert name in found.title.lower()
    assert 10 < len(attack_lists()[name]) < 120
    for norm in ("linf", "l2"):
        for member in found.members:
            member.attack.check(ThreatModel(norm=norm, eps="1/255"))


def test_a_misspelt_list_shows_the_near_one():
    with pytest.raises(RegistryError, match=r'unknown list of attacks "standart"\. Did you mean "standard"'):
        attack_list("standart")


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_few_classes_do_not_stop_a_list(classes):
    task = AffineTask(classes, seed=0, samples=16)
    outcome = run_sequence(
        attack_list("quick").members,
        lambda attack: Misclassify(task.classifier, task.labels, loss=attack.loss),
        task.pixels,
        task.keys,
        ThreatModel(eps="16/256"),
        seed=0,
    )
    assert outcome.finished == 3
    assert outcome.broken.sum() > outcome.clean.broken.sum()
    with torch.no_grad():
        predicted = task.classifier.logits(outcome.adversarial).argmax(dim=1)
    assert (outcome.broken | (predicted == task.labels)).all()
