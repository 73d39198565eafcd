from __future__ import annotations

import pytest
import torch

from ironclip.attacks.driver import run_attack
from ironclip.attacks.objectives import Misclassify
from ironclip.attacks.threat_model import ThreatModel
from ironclip.attacks.typographic import Typographic, write_words
from ironclip.errors import ConfigError
from ironclip.models.zero_shot import PythonClassifier
from made_up_classifiers import AffineTask
from made_up_images import natural_like

NAMES = ("cat", "dog", "Old English sheepdog")
ANYTHING = ThreatModel(eps="1")


def reader() -> PythonClassifier:
    """A model that reads: the class whose word, written at the top, is most like the image's upper half."""
    blank = torch.full((1, 3, 32, 64), 0.5)
    words = torch.cat([write_words(blank, [name], [0.0], 0.5)[:, :, :16] for name in NAMES]).flatten(1)

    def call(pixels):
        return -(pixels[:, None, :, :16].flatten(2) - words).square().sum(dim=2)

    return PythonClassifier(call, class_names=NAMES)


@pytest.mark.parametrize("word", [*NAMES, "a", "Welsh springer spaniel with a very long name"])
@pytest.mark.parametrize("size", [(32, 32), (224, 160)])
def test_words_are_there_and_inside_their_band(word, size):
    height, width = size
    written = write_words(torch.full((1, 3, height, width), 0.5), [word], [1.0], 0.25)[0]
    band = round(0.25 * height)
    assert (written[:, : height - band] == 0.5).all()
    letters = written[0, height - band :]
    assert torch.equal(written[0], written[1])
    assert letters.min() < 0.6
    assert letters.max() == 1
    assert (letters[:, 0] > 0.1).any()
    if len(word) < 20:
        ink = torch.where((letters < 0.6).any(dim=0))[0]
        assert abs((ink.min() + ink.max()) / 2 - (width - 1) / 2) < max(2, 0.06 * width)  # in the middle


def test_different_words_look_different():
    shown = [write_words(torch.zeros(1, 3, 64, 64), [name], [0.0], 0.3) for name in NAMES]
    assert all(not torch.equal(shown[i], shown[j]) for i in range(3) for j in range(i))


def test_a_model_that_reads_is_told_what_to_see():
    classifier = reader()
    pixels = write_words(natural_like(12, 32, 64), [NAMES[index % 3] for index in range(12)], [0.0] * 12, 0.5)
    labels = torch.arange(12) % 3
    keys = [str(index) for index in range(12)]
    objective = Misclassify(classifier, labels, "margin")
    outcome = run_attack(Typographic(share=0.9, queries=2), objective, pixels, keys, ANYTHING, seed=0)
    assert not outcome.clean.broken.any()
    outcome = run_attack(Typographic(share=0.5, queries=2, restarts=16), objective, pixels, keys, ANYTHING, seed=0)
    assert outcome.broken.any()
    answers = classifier.logits(outcome.adversarial).argmax(dim=1)
    assert torch.equal(answers != labels, outcome.broken)
    assert (outcome.forwards <= 2 + 16 * 3 + 48).all()


def test_a_small_ball_bounds_the_contrast():
    classifier, threat = reader(), ThreatModel(eps="8/255")
    pixels = natural_like(3, 32, 64)
    found = run_attack(
        Typographic(), Misclassify(classifier, torch.zeros(3, dtype=torch.int64)), pixels, list("abc"), threat, seed=0
    )
    assert threat.contains(found.adversarial, pixels).all()


def test_errors():
    task = AffineTask(3, seed=0)
    with pytest.raises(ConfigError, match=r"writes class names.*have none\.\n.*class_names"):
        run_attack(Typographic(), Misclassify(task.classifier, task.labels), task.pixels, task.keys, ANYTHING, seed=0)
    with pytest.raises(ConfigError, match="0 queries"):
        Typographic(queries=0)
    with pytest.raises(ConfigError, match=r"share is 1\.5"):
        Typographic(share=1.5)
