from __future__ import annotations

import dataclasses

import pytest
import torch

from ironclip.attacks.driver import run_attack
from ironclip.attacks.embedding import EmbeddingAttack
from ironclip.attacks.objectives import Misclassify
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError
from ironclip.models.zero_shot import FixedClasses
from ironclip.randomness import SampleRandom
from made_up_classifiers import Affine, AffineTask

LINF = ThreatModel(eps="8/256")


def test_on_an_affine_map_to_one_number_the_farthest_point_is_a_corner():
    """Both corners along the slope are equally far from the image; the start decides between them."""
    task = AffineTask(2, seed=0, inner=True)
    slope = task.weight[0]
    classifier = Affine(torch.stack([slope, torch.zeros_like(slope)]), torch.zeros(2))
    labels = torch.zeros(len(task.pixels), dtype=torch.int64)
    attack = EmbeddingAttack(steps=20)
    found = attack.perturb(Misclassify(classifier, labels), task.pixels, LINF, SampleRandom(0, task.keys))
    farthest = LINF.radius * slope.abs().sum()
    assert torch.allclose(((found - task.pixels).flatten(1) @ slope).abs(), farthest, rtol=1e-4)
    signs = ((found - task.pixels).flatten(1) @ slope).sign()
    assert {-1.0, 1.0} == set(signs.tolist())


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_neither_labels_nor_prompts_guide_it(clip_task, distance):
    task = clip_task(samples=16)
    attack, threat = EmbeddingAttack(steps=5, distance=distance), ThreatModel(eps="2/255")
    streams = SampleRandom(0, task.keys)
    found = attack.perturb(task.objective(), task.pixels, threat, streams)
    other_classes = FixedClasses(task.classifier.model, task.classifier.class_weights.flip(0))
    blind = Misclassify(other_classes, (task.labels + 1) % 10, "margin")
    assert torch.equal(attack.perturb(blind, task.pixels, threat, streams), found)


def test_it_moves_the_embedding_farther_than_corners_and_an_evaluation_scores_it(clip_task):
    task, threat = clip_task(samples=32), ThreatModel(eps="4/255")
    attack = EmbeddingAttack(steps=20)
    outcome = run_attack(attack, task.objective("margin"), task.pixels, task.keys, threat, seed=0)
    answers = task.classifier.logits(outcome.adversarial).argmax(dim=1)
    assert torch.equal(outcome.broken, answers != task.labels)
    assert outcome.broken.float().mean() > outcome.clean.broken.float().mean() + 0.2
    model = task.classifier.model
    home = model.embed_image(task.pixels).detach()

    def moved(pixels):
        return (model.embed_image(pixels).detach() - home).square().sum(dim=1)

    noise = torch.randn(task.pixels.shape, generator=torch.Generator().manual_seed(0)).sign()
    at_random = moved((task.pixels + threat.radius * noise).clamp(0, 1))
    assert (moved(outcome.adversarial) > at_random)[~outcome.clean.broken].all()


def test_it_claims_nothing_before_the_search_is_over(clip_task):
    task, attack = clip_task(samples=16), EmbeddingAttack(steps=4)
    state = attack.start(task.objective(), task.pixels, LINF, SampleRandom(0, task.keys))
    seen = []
    while not state.done:
        state = attack.step(task.objective(), state)
        seen.append(bool(state.claimed.any()))
    assert seen == [False] * 4 + [True]


def test_names_what_it_follows():
    assert EmbeddingAttack(distance="cosine").loss_used(10) == "embedding_cosine"


def test_errors():
    with pytest.raises(ConfigError, match="0 steps"):
        EmbeddingAttack(steps=0)
    with pytest.raises(ConfigError, match=r"rel_step_size is -1"):
        EmbeddingAttack(rel_step_size=-1)
    with pytest.raises(ConfigError, match=r'distance is "l1".*\n.*l2, cosine'):
        EmbeddingAttack(distance="l1")
    with pytest.raises(ConfigError, match="not to a target"):
        EmbeddingAttack().check(dataclasses.replace(LINF, goal="targeted"))
