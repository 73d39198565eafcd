from __future__ import annotations

import pytest
import torch

from ironclip.attacks.apgd import APGD
from ironclip.attacks.text.characters import Charmer
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import DataError, ShapeError
from ironclip.evaluation.joint_attack import evaluate_joint_attack
from ironclip.models.zero_shot import ZeroShotClassifier
from made_up_images import natural_like

NAMES, TEMPLATE = ["dog", "cat", "grass", "sea"], "a photo of a {}."
KEYS = [f"image {row}" for row in range(8)]
ATTACK, EDIT, WEAK = APGD(steps=3), Charmer(edits=1, places=2), ThreatModel(eps="1/2550")


@pytest.fixture
def case(tiny_clip):
    model, pixels = tiny_clip(), natural_like(8, 32, seed=2)
    with torch.no_grad():
        labels = ZeroShotClassifier(model, NAMES, [TEMPLATE]).logits(pixels).argmax(dim=1)
    labels[0] = (labels[0] + 1) % 4
    return model, pixels, labels


def test_each_verdict_is_that_of_its_attack(case):
    model, pixels, labels = case
    found = evaluate_joint_attack(model, pixels, labels, KEYS, NAMES, TEMPLATE, ATTACK, EDIT, WEAK)
    assert [one.clean for one in found.verdicts] == [False] + [True] * 7
    assert all(clean != attacked for clean, attacked in found.prompts)
    with torch.no_grad():
        texts = model.text_features([attacked for _, attacked in found.prompts])
        right = (model.image_features(pixels) @ texts.T).argmax(dim=1) == labels
    assert [one.text for one in found.verdicts] == (right & torch.tensor([False] + [True] * 7)).tolist()
    for one in found.verdicts:
        assert one.clean >= one.image >= one.joint
        assert one.text >= one.joint
    assert found.accuracy("clean").estimate == 7 / 8


def test_a_strong_adversary_leaves_nothing(case):
    model, pixels, labels = case
    found = evaluate_joint_attack(model, pixels, labels, KEYS, NAMES, TEMPLATE, ATTACK, EDIT, ThreatModel(eps="32/255"))
    assert found.accuracy("joint").estimate == found.accuracy("image").estimate == 0


def test_what_does_not_fit_is_refused(case):
    model, pixels, labels = case
    with pytest.raises(ShapeError, match="8 images, 8 labels, 7 keys"):
        evaluate_joint_attack(model, pixels, labels, KEYS[:7], NAMES, TEMPLATE, ATTACK, EDIT, WEAK)
    with pytest.raises(DataError, match="2 class names for label"):
        evaluate_joint_attack(model, pixels, labels + 2, KEYS, NAMES[:2], TEMPLATE, ATTACK, EDIT, WEAK)
