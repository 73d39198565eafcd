"""Robust validation on the held-out part of the training data: what a run's log shows, and what selects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ironclip.attacks.base import Attack
from ironclip.attacks.driver import DriverSettings, run_attack
from ironclip.attacks.objectives import EmbeddingDistance, Misclassify
from ironclip.attacks.threat_model import ThreatModel
from ironclip.models.clip import CLIPModel
from ironclip.models.zero_shot import FixedClasses
from ironclip.randomness import SampleRandom


@dataclass(frozen=True)
class Validation:
    """Figures on held-out images, shares in [0, 1].

    Attributes:
        samples: How many images.
        clean_accuracy: On clean images; NaN without labels.
        robust_accuracy: Under the validation attack (PGD-20); NaN without labels.
        train_attack_accuracy: Under the attack that the run trains with; NaN without one or without labels.
        overfitting_gap: `train_attack_accuracy - robust_accuracy`: near 1 is catastrophic overfitting, a model that
            resists its own training attack only.
        embedding_cosine: Mean cosine of attacked embeddings with the teacher's clean ones.
    """

    samples: int
    clean_accuracy: float
    robust_accuracy: float
    train_attack_accuracy: float
    overfitting_gap: float
    embedding_cosine: float

    @property
    def value(self) -> float:
        """What `select: best` compares: robust accuracy, or the cosine where there are no labels."""
        return self.embedding_cosine if self.robust_accuracy != self.robust_accuracy else self.robust_accuracy


@dataclass(frozen=True)
class HeldOut:
    """Held-out images on the device.

    Attributes:
        keys: One a sample.
        pixels: `[N, 3, H, W]`.
        labels: `[N]`, or None.
        teacher_embedding: `[N, D]`, the original model's clean embedding.
    """

    keys: Sequence[str]
    pixels: Tensor
    labels: Tensor | None
    teacher_embedding: Tensor

    def first(self, count: int) -> HeldOut:
        """Return the first `count` samples."""
        labels = None if self.labels is None else self.labels[:count]
        return HeldOut(self.keys[:count], self.pixels[:count], labels, self.teacher_embedding[:count])


def validate(
    model: CLIPModel,
    held_out: HeldOut,
    class_weights: Tensor | None,
    *,
    attack: Attack,
    train_attack: Attack | None,
    threat: ThreatModel,
    seed: int,
    precision: torch.dtype,
) -> Validation:
    """Attack the held-out images with the validation attack and with the training attack.

    Args:
        model: The model as it is now.
        held_out: Images of the training data that are never trained on.
        class_weights: `[C, D]`, or None where there are no labels.
        attack: The validation attack, run by the driver (verdicts in float32).
        train_attack: The training attack; None for a method without one.
        threat: The game.
        seed: Of the run; starts are the same at every validation.
        precision: Of the search.
    """
    nan = float("nan")
    settings = DriverSettings(search_dtype=precision)
    if held_out.labels is None or class_weights is None:
        distance = EmbeddingDistance(model, held_out.teacher_embedding)
        outcome = run_attack(attack, distance, held_out.pixels, held_out.keys, threat, seed=seed, settings=settings)
        cosine = _mean_cosine(model, outcome.adversarial, held_out.teacher_embedding)
        return Validation(len(held_out.keys), nan, nan, nan, nan, cosine)
    classes = Misclassify(FixedClasses(model, class_weights), held_out.labels, loss=attack.loss)
    outcome = run_attack(attack, classes, held_out.pixels, held_out.keys, threat, seed=seed, settings=settings)
    robust = 1 - float(outcome.broken.float().mean())
    trained = nan
    if train_attack is not None:
        trained = _accuracy_under(train_attack, classes, held_out, threat, seed, precision)
    return Validation(
        samples=len(held_out.keys),
        clean_accuracy=1 - float(outcome.clean.broken.float().mean()),
        robust_accuracy=robust,
        train_attack_accuracy=trained,
        overfitting_gap=trained - robust,
        embedding_cosine=_mean_cosine(model, outcome.adversarial, held_out.teacher_embedding),
    )


def _accuracy_under(
    attack: Attack, objective: Misclassify, held_out: HeldOut, threat: ThreatModel, seed: int, precision: torch.dtype
) -> float:
    """Accuracy on what the training attack returns, as training sees it: no early exit, the attack's own choice."""
    wrong = 0
    for rows in torch.arange(len(held_out.keys)).split(64):
        random = SampleRandom(seed, [held_out.keys[row] for row in rows.tolist()], "validation")
        with objective.computing(precision):
            adversarial = attack.perturb(objective.take(rows), held_out.pixels[rows], threat, random)
        with torch.no_grad():
            wrong += int(objective.take(rows).evaluate(adversarial).broken.sum())
    return 1 - wrong / len(held_out.keys)


def _mean_cosine(model: CLIPModel, pixels: Tensor, reference: Tensor) -> float:
    with torch.no_grad():
        cosines = [
            F.cosine_similarity(model.embed_image(pixels[rows].to(model.device)), reference[rows])
            for rows in torch.arange(len(pixels)).split(64)
        ]
    return float(torch.cat(cosines).mean())
