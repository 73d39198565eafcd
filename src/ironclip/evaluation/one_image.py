"""One image under attack, look by look: what `ironclip attack` shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ironclip.attacks.base import Attack
from ironclip.attacks.driver import DriverSettings, run_attack
from ironclip.attacks.objectives import Evaluation, Misclassify, Objective
from ironclip.attacks.threat_model import ThreatModel
from ironclip.data.classes import colliding_names
from ironclip.errors import ConfigError
from ironclip.models.zero_shot import Classifier


@dataclass(frozen=True)
class Look:
    """One pass of the image through the model.

    Attributes:
        pixels: Float32 `[3, H, W]`.
        probabilities: Of the classes, in their order.
    """

    pixels: npt.NDArray[np.float32]
    probabilities: tuple[float, ...]

    @property
    def answer(self) -> int:
        """Return the class that the model names."""
        return int(np.argmax(self.probabilities))


@dataclass(frozen=True)
class ImageUnderAttack:
    """An image, what was done to it, and what the model said.

    Attributes:
        looks: The clean image, then every point that the attack examined; the last one is where it ended.
        broken: Whether the answer to the last one is another than to the first, as verified by the driver.
        forwards: Passes through the model.
        backwards: Gradients.
    """

    looks: tuple[Look, ...]
    broken: bool
    forwards: int
    backwards: int


def check_choice(class_names: Sequence[str]) -> None:
    """Refuse classes between which there is nothing to choose.

    Raises:
        ConfigError: Fewer than two, or two that read alike.
    """
    if len(class_names) < 2:
        named = f' "{class_names[0]}" alone is no choice.' if class_names else ""
        raise ConfigError(
            f"classes to choose from: {len(class_names)}.{named}", "Give at least two, such as --classes cat,dog,car."
        )
    if alike := colliding_names(class_names):
        raise ConfigError(f'"{alike[0][0]}" stands twice among the classes.', "Give each class once.")


def attack_image(
    classifier: Classifier,
    class_names: Sequence[str],
    pixels: Tensor,
    attack: Attack,
    threat: ThreatModel,
    *,
    seed: int,
) -> ImageUnderAttack:
    """Lead a model away from its own answer to an image.

    Args:
        classifier: The model.
        class_names: What it chooses from, at least two, no two alike.
        pixels: Float32 `[3, H, W]` in [0, 1].
        attack: Settings.
        threat: The game; the label is what the model says to the clean image.
        seed: Of random starts.

    Raises:
        ConfigError: Fewer than two classes, or two that read alike.
        ValueRangeError: Pixels outside [0, 1].
    """
    check_choice(class_names)
    with torch.no_grad():
        label = classifier.logits(pixels[None].to(classifier.device)).argmax(dim=1)
    objective = _Watched(Misclassify(classifier, label, attack.loss))
    # One image: no neighbours to be independent of, so no copies to fill a tile.
    settings = DriverSettings(tile=1, granule=1)
    game = replace(threat, label_source="model prediction")
    outcome = run_attack(attack, objective, pixels[None], ["image"], game, seed=seed, settings=settings)
    looks = objective.looks
    if not np.array_equal(looks[-1].pixels, outcome.adversarial[0].numpy()):
        raise RuntimeError("the driver looks at what it returns last")
    return ImageUnderAttack(tuple(looks), bool(outcome.broken[0]), int(outcome.forwards[0]), int(outcome.backwards[0]))


@dataclass(frozen=True)
class _Watched(Objective):
    """An objective of one row that remembers what it was shown; the same point twice in a row counts once."""

    inner: Misclassify
    looks: list[Look] = field(default_factory=list)

    def evaluate(self, pixels: Tensor) -> Evaluation:
        evaluation = self.inner.evaluate(pixels)
        shown = pixels[0].detach().cpu().float().numpy()
        if evaluation.logits is not None and not (self.looks and np.array_equal(self.looks[-1].pixels, shown)):
            odds = evaluation.logits[0].detach().cpu().double().softmax(dim=0)
            self.looks.append(Look(shown, tuple(odds.tolist())))
        return evaluation

    def take(self, rows: Tensor) -> _Watched:
        return _Watched(self.inner.take(rows), self.looks)

    def rivals(self, evaluation: Evaluation, count: int) -> Tensor:
        return self.inner.rivals(evaluation, count)

    def aim(self, evaluation: Evaluation, targets: Tensor, loss: str) -> Tensor:
        return self.inner.aim(evaluation, targets, loss)

    @property
    def modules(self) -> Sequence[torch.nn.Module]:
        return self.inner.modules

    @property
    def device(self) -> torch.device:
        return self.inner.device
