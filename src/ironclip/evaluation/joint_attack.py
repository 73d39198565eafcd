"""Zero-shot accuracy of one checkpoint under an attack on images, on class prompts, and on both.

Both: first the prompts are moved away from their own embeddings, once for all images (see `text_attack`), then each
image is attacked against the prompts as they then are. What either attack breaks alone counts as broken by both, since
who may do both may leave one of them. Source: Zhou et al., arXiv:2404.19287 (MMCoA), sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ironclip.attacks.base import Attack
from ironclip.attacks.driver import DriverSettings, run_attack
from ironclip.attacks.objectives import Misclassify
from ironclip.attacks.text.base import TextAttack
from ironclip.attacks.threat_model import ThreatModel
from ironclip.data.classes import class_groups, fill_templates
from ironclip.errors import DataError, ShapeError
from ironclip.evaluation.intervals import Interval, wilson
from ironclip.evaluation.text_attack import TEXTS, attack_prompts
from ironclip.models.clip import CLIPModel
from ironclip.models.zero_shot import FixedClasses


@dataclass(frozen=True)
class JointVerdict:
    """What became of one image; each says whether it is right.

    Attributes:
        key: Of the sample.
        clean: As it is, with the prompts as they are.
        image: And under the attack on the image.
        text: And with the attacked prompts.
        joint: And under each of the two and both together.
    """

    key: str
    clean: bool
    image: bool
    text: bool
    joint: bool


@dataclass(frozen=True)
class JointResult:
    """The verdicts, and the prompts as the adversary left them.

    Attributes:
        verdicts: One a sample.
        prompts: Clean and attacked, one a class.
    """

    verdicts: tuple[JointVerdict, ...]
    prompts: tuple[tuple[str, str], ...]

    def accuracy(self, under: str) -> Interval:
        """Return the share of images that are right: `clean`, or under `image`, `text`, `joint`."""
        return wilson(sum(getattr(one, under) for one in self.verdicts), len(self.verdicts))


def evaluate_joint_attack(
    model: CLIPModel,
    pixels: Tensor,
    labels: Tensor,
    keys: Sequence[str],
    class_names: Sequence[str],
    template: str,
    attack: Attack,
    text_attack: TextAttack,
    threat: ThreatModel,
    *,
    seed: int = 0,
    driver: DriverSettings | None = None,
) -> JointResult:
    """Classify images clean, under an attack on the image, on the prompts, and on both.

    Args:
        model: The model.
        pixels: Float32 `[N, 3, H, W]` in [0, 1].
        labels: `[N]` int64.
        keys: One stable key an image.
        class_names: Words for the labels.
        template: With one `{}`.
        attack: On images.
        text_attack: On prompts.
        threat: The game of the attack on images.
        seed: Of all draws.
        driver: Tile and precision of the search.

    Raises:
        ConfigError: A template without `{}`.
        DataError: A label without a class name.
        ShapeError: Not one label and key an image, or no images.
    """
    if not len(pixels) == len(labels) == len(keys) or not len(keys):
        raise ShapeError(f"{len(pixels)} images, {len(labels)} labels, {len(keys)} keys.", "Give one of each an image.")
    if int(labels.max()) >= len(class_names):
        raise DataError(
            f"{len(class_names)} class names for label {int(labels.max())}.", "Give a name for every label."
        )
    prompts = [fill_templates(name, [template])[0] for name in class_names]
    attacked = attack_prompts(model, prompts, text_attack, seed=seed)
    standing = {}
    for name, texts in (("image", prompts), ("joint", attacked)):
        with torch.no_grad():
            weights = torch.cat([model.text_features(texts[at : at + TEXTS]) for at in range(0, len(texts), TEXTS)])
        groups = torch.tensor(class_groups(texts), device=model.device)
        classifier = FixedClasses(model, weights)
        objective = Misclassify(classifier, labels.to(model.device), loss=attack.loss, groups=groups)
        outcome = run_attack(attack, objective, pixels, keys, threat, seed=seed, settings=driver)
        standing[name] = (~outcome.clean.broken, ~outcome.broken)
    (clean, image), (text, both) = standing["image"], standing["joint"]
    columns = (clean, image, clean & text, image & both)
    verdicts = (JointVerdict(key, *map(bool, row)) for key, *row in zip(keys, *columns, strict=True))
    return JointResult(tuple(verdicts), tuple(zip(prompts, attacked, strict=True)))
