"""What every attack does that does not climb the loss in the whole ball: local ones, and those without labels."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ironclip.attacks.base import ATTACKS
from ironclip.attacks.driver import run_attack
from ironclip.attacks.objectives import Misclassify
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError
from ironclip.randomness import SampleRandom
from made_up_classifiers import Free
from made_up_images import natural_like
from quick_attacks import quick

NAMES = [*ATTACKS.names("local"), *ATTACKS.names("label-free"), *ATTACKS.names("natural")]
ANYTHING, SMALL = ThreatModel(eps="1"), ThreatModel(eps="4/255")
each = pytest.mark.parametrize("name", NAMES)


class Named(Free):
    """Which third of the image is the brightest, by a model that has words for it and counts its passes."""

    class_names = ("top", "middle", "bottom")

    def __init__(self):
        super().__init__(self.scored)
        self.seen = {"forwards": 0, "backwards": 0}

    def scored(self, pixels):
        self.seen["forwards"] += len(pixels)
        if pixels.requires_grad:
            pixels.register_hook(lambda _: self.seen.update(backwards=self.seen["backwards"] + len(pixels)))
        return pixels.mean(dim=(1, 3)).unflatten(1, (3, -1)).mean(dim=2) * 10


@pytest.fixture
def task():
    classifier, pixels = Named(), natural_like(32, 24, seed=2)
    labels = classifier.logits(pixels).argmax(dim=1)
    return Misclassify(classifier, labels, "margin"), pixels, [f"sample {index}" for index in range(32)]


def test_they_are_registered():
    assert {"patch", "typographic", "embedding", "corruption"} <= set(NAMES)


@each
def test_goes_round_through_plain_data(name):
    attack = dataclasses.replace(ATTACKS.create(name), restarts=2)
    assert ATTACKS.create(name, dataclasses.asdict(attack)) == attack
    with pytest.raises(ConfigError, match="restarts"):
        ATTACKS.create(name, {"restarts": 0})


@each
@pytest.mark.parametrize("threat", [ANYTHING, SMALL], ids=str)
def test_stays_in_ball_and_box(name, threat, task):
    objective, pixels, keys = task
    outcome = run_attack(quick(name), objective, pixels, keys, threat, seed=0)
    assert not outcome.invalid.any()
    assert threat.contains(outcome.adversarial, pixels).all()
    logits = objective.classifier.logits(outcome.adversarial)
    own = logits.gather(1, objective.labels[:, None])
    others = logits.scatter(1, objective.labels[:, None], -torch.inf).amax(dim=1)
    assert torch.equal(outcome.broken, others >= own[:, 0])


@each
def test_a_row_alone_is_the_row_among_others(name, task):
    objective, pixels, keys = task
    whole = quick(name).perturb(objective, pixels, SMALL, SampleRandom(1, keys))
    copies = torch.tensor([5] * 16)
    alone = quick(name).perturb(objective.take(copies), pixels[copies], SMALL, SampleRandom(1, [keys[5]] * 16))
    torch.testing.assert_close(alone, whole[copies], rtol=0, atol=1e-6)
    other_seed = quick(name).perturb(objective, pixels, SMALL, SampleRandom(2, keys))
    assert not torch.equal(other_seed, whole)


@each
def test_counts_its_passes(name, task):
    objective, pixels, keys = task
    objective.classifier.seen.update(forwards=0, backwards=0)
    attack = quick(name)
    state = attack.start(objective, pixels, SMALL, SampleRandom(0, keys))
    while not state.done:
        state = attack.step(objective, state)
    assert {
        "forwards": int(state.forwards.sum()),
        "backwards": int(state.backwards.sum()),
    } == objective.classifier.seen


@each
def test_an_empty_batch_comes_back_empty(name, task):
    objective, pixels, _ = task
    nothing = torch.arange(0)
    assert quick(name).perturb(objective.take(nothing), pixels[:0], SMALL, SampleRandom(0, [])).shape == (0, 3, 24, 24)
