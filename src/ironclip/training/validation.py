"""Robust validation on the held-out part of the training data: what a run's log shows, and what selects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

PART = 64
"""Images a forward outside the driver."""


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


TrainAttack = Callable[[HeldOut], Tensor]


def validate(
    model: CLIPModel,
    held_out: HeldOut,
    class_weights: Tensor | None,
    *,
    attack: Attack,
    train_attack: TrainAttack | None,
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
        train_attack: Images as the training attack leaves them; None for a method without one.
        threat: The game.
        seed: Of the run; starts are the same at every validation.
        precision: Of the search.
    """
    nan, samples = float("nan"), len(held_out.keys)
    settings = DriverSettings(search_dtype=precision)
    if held_out.labels is None or class_weights is None:
        distance = EmbeddingDistance(model, held_out.teacher_embedding)
        outcome = run_attack(attack, distance, held_out.pixels, held_out.keys, threat, seed=seed, settings=settings)
        cosine = _mean_cosine(model, outcome.adversarial, held_out.teacher_embedding)
        return Validation(samples, nan, nan, nan, nan, cosine)
    classes = Misclassify(FixedClasses(model, class_weights), held_out.labels, loss=attack.loss)
    outcome = run_attack(attack, classes, held_out.pixels, held_out.keys, threat, seed=seed, settings=settings)
    robust = _share(~outcome.broken)
    trained = nan
    if train_attack is not None:
        adversarial = train_attack(held_out)
        with torch.no_grad():
            broken = [
                classes.take(rows).evaluate(adversarial[rows]).broken for rows in torch.arange(samples).split(PART)
            ]
        trained = _share(~torch.cat(broken))
    return Validation(
        samples=samples,
        clean_accuracy=_share(~outcome.clean.broken),
        robust_accuracy=robust,
        train_attack_accuracy=trained,
        overfitting_gap=trained - robust,
        embedding_cosine=_mean_cosine(model, outcome.adversarial, held_out.teacher_embedding),
    )


def _share(right: Tensor) -> float:
    """Return the exact share of True."""
    return int(right.sum()) / len(right)


def _mean_cosine(model: CLIPModel, pixels: Tensor, reference: Tensor) -> float:
    with torch.no_grad():
        cosines = [
            F.cosine_similarity(model.embed_image(pixels[rows].to(model.device)), reference[rows])
            for rows in torch.arange(len(pixels)).split(PART)
        ]
    return float(torch.cat(cosines).mean())
