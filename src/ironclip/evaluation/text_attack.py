"""Zero-shot accuracy when the class prompts are attacked: verdicts a sample, intervals, and against how many classes.

The attacked object is the list of prompts. `aim` says how:

    embedding  every prompt is moved away from its own clean embedding, once for all images; the adversary knows no
               image (the text threat of MMCoA, Zhou et al., arXiv:2404.19287).
    label      for each image the prompt of its class is changed so that the image is misread; the others stay. The
               adversary knows image and label.

A sample is robust if it is right with the clean prompts and with the attacked ones. No attack is believed: scores come
from the strings that it returned, and so do the edits that a verdict states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ironclip.attacks.objectives import is_correct, predict
from ironclip.attacks.text.base import TextAttack
from ironclip.attacks.text.budget import changed_words, levenshtein
from ironclip.attacks.text.objectives import Measure, MisclassifyByPrompt, TextDistance
from ironclip.data.classes import class_groups, fill_templates
from ironclip.data.contract import Dataset
from ironclip.data.images import stack_images
from ironclip.data.order import read_batches
from ironclip.errors import ConfigError, DataError, ShapeError
from ironclip.evaluation.intervals import Interval, wilson
from ironclip.models.clip import CLIPModel
from ironclip.models.zero_shot import zero_shot_logits
from ironclip.randomness import SampleRandom, rank_of

Aim = Literal["embedding", "label"]

IMAGES, TEXTS = 64, 256
"""Images and texts a forward."""


@dataclass(frozen=True)
class EncodedImages:
    """Images as the model sees them; a text attack does not change them, so they are encoded once.

    Attributes:
        keys: One a sample.
        features: Unit rows `[N, D]`.
        labels: `[N]` int64.
    """

    keys: Sequence[str]
    features: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if not len(self.keys) == len(self.features) == len(self.labels):
            raise ShapeError(
                f"{len(self.keys)} keys, {len(self.features)} features, {len(self.labels)} labels.",
                "Give one of each per image.",
            )

    def of_classes(self, classes: Sequence[int], among: Sequence[int]) -> EncodedImages:
        """Return the images of some classes, labelled by the place of their class in `among`.

        Raises:
            DataError: There are none.
        """
        place = {label: index for index, label in enumerate(among)}
        rows = [row for row, label in enumerate(self.labels.tolist()) if label in set(classes)]
        if not rows:
            raise DataError(
                f"none of {len(self.keys)} images shows one of {len(classes)} classes.", "Give more images."
            )
        labels = [place[int(self.labels[row])] for row in rows]
        return EncodedImages(
            [self.keys[row] for row in rows], self.features[rows], torch.tensor(labels, device=self.labels.device)
        )


@dataclass(frozen=True)
class TextVerdict:
    """What became of one image.

    Attributes:
        key: Of the sample.
        label: Its class.
        pred_clean: Predicted with the clean prompts.
        pred_attacked: Predicted with the attacked ones.
        prompt: Of its class, clean.
        attacked_prompt: Of its class, attacked.
        characters: Levenshtein distance between the two.
        words: Words changed between the two.
    """

    key: str
    label: int
    pred_clean: int
    pred_attacked: int
    prompt: str
    attacked_prompt: str
    characters: int
    words: int

    @property
    def robust(self) -> bool:
        """Right with both."""
        return self.pred_clean == self.label == self.pred_attacked


@dataclass(frozen=True)
class TextResult:
    """A text attack on one list of classes.

    Attributes:
        classes: How many classes there are to choose from.
        verdicts: One a sample.
    """

    classes: int
    verdicts: tuple[TextVerdict, ...]

    @property
    def clean_accuracy(self) -> Interval:
        """Share of all samples that are right with the clean prompts."""
        return wilson(sum(one.pred_clean == one.label for one in self.verdicts), len(self.verdicts))

    @property
    def robust_accuracy(self) -> Interval:
        """Share of all samples that are right with the clean and with the attacked prompts."""
        return wilson(sum(one.robust for one in self.verdicts), len(self.verdicts))


def encode_images(model: CLIPModel, data: Dataset, rows: Sequence[int]) -> EncodedImages:
    """Read labelled images and encode them.

    Args:
        model: The model.
        data: Labelled.
        rows: Positions in the data.

    Raises:
        DataError: No labels, or an image that cannot be read.
    """
    if data.labels is None:
        raise DataError(f"{data.source} has no labels.", "Zero-shot accuracy needs labelled images.")
    features = []
    for samples in read_batches(data, rows, IMAGES, strict=True, unreadable={}):
        pixels = stack_images([sample.pixels for sample in samples], data.source).to(model.device)
        with torch.no_grad():
            features.append(model.image_features(pixels))
    labels = torch.tensor([data.labels[row] for row in rows], device=model.device)
    return EncodedImages([data.keys[row] for row in rows], torch.cat(features), labels)


def attack_prompts(
    model: CLIPModel, prompts: Sequence[str], attack: TextAttack, *, measure: Measure = "squared_l2", seed: int = 0
) -> list[str]:
    """Move each prompt away from its own embedding; the draws of a prompt belong to its words.

    Args:
        model: The model, also what the attack queries.
        prompts: Texts.
        attack: Whose budget the results are checked against.
        measure: Of the distance.
        seed: Of the draws.
    """
    target = _embed(model, prompts)
    return attack.perturb(TextDistance(model, target, measure), prompts, SampleRandom(seed, prompts, "prompts"))


def evaluate_text_attack(
    model: CLIPModel,
    images: EncodedImages,
    class_names: Sequence[str],
    template: str,
    attack: TextAttack,
    *,
    aim: Aim = "embedding",
    measure: Measure = "squared_l2",
    seed: int = 0,
) -> TextResult:
    """Classify images with clean and with attacked prompts.

    Args:
        model: The model.
        images: Of these classes.
        class_names: Words for the labels.
        template: With one `{}`; an adversary on an average over templates would have to edit all of them.
        attack: The text attack.
        aim: "embedding" or "label", see above.
        measure: Of the distance, for "embedding".
        seed: Of the draws.

    Raises:
        ConfigError: A template without `{}`.
        DataError: A label without a class name.
    """
    prompts = [fill_templates(name, [template])[0] for name in class_names]
    labels = images.labels
    if len(labels) and int(labels.max()) >= len(prompts):
        raise DataError(f"{len(prompts)} class names for label {int(labels.max())}.", "Give a name for every label.")
    clean, scale = _unit(_embed(model, prompts)), model.logit_scale.detach().item()
    if aim == "embedding":
        attacked = attack_prompts(model, prompts, attack, measure=measure, seed=seed)
        own = [attacked[label] for label in labels.tolist()]
        weights, groups = _unit(_embed(model, attacked)), class_groups(attacked)
        after = _predictions(images, lambda rows: weights, scale, groups)
    else:
        objective = MisclassifyByPrompt(model, images.features, clean, labels, scale)
        clean_own = [prompts[label] for label in labels.tolist()]
        own = attack.perturb(objective, clean_own, SampleRandom(seed, images.keys, "label"))
        rivals = _unit(_embed(model, own))
        after = _predictions(images, lambda rows: _with_own(clean, rivals[rows], labels[rows]), scale, None)
    before = _predictions(images, lambda rows: clean, scale, class_groups(prompts))
    verdicts = []
    for key, label, first, second, text in zip(images.keys, labels.tolist(), before, after, own, strict=True):
        edits = (levenshtein(prompts[label], text), changed_words(prompts[label], text))
        verdicts.append(TextVerdict(key, label, first, second, prompts[label], text, *edits))
    return TextResult(len(prompts), tuple(verdicts))


def nested_classes(class_names: Sequence[str], count: int) -> list[int]:
    """Choose classes by a hash of their names, so that a smaller choice lies within every larger one.

    Returns:
        Their labels, ascending.

    Raises:
        ConfigError: There are not so many, or none is asked for.
    """
    if not 1 <= count <= len(class_names):
        raise ConfigError(f"{count} of {len(class_names)} classes.", f"Give a number from 1 to {len(class_names)}.")
    order = sorted(range(len(class_names)), key=lambda label: (rank_of("classes", class_names[label]), label))
    return sorted(order[:count])


def against_class_counts(
    model: CLIPModel,
    images: EncodedImages,
    class_names: Sequence[str],
    template: str,
    attack: TextAttack,
    *,
    counts: Sequence[int] = (10, 50, 100, 200),
    aim: Aim = "embedding",
    measure: Measure = "squared_l2",
    seed: int = 0,
) -> Mapping[int, TextResult]:
    """Evaluate a text attack against more and more classes, on the same images: those of the smallest choice.

    Arguments and errors as in `evaluate_text_attack`; `counts` are numbers of classes.

    Raises:
        ConfigError: More classes than there are.
        DataError: There is no image of the smallest choice.
    """
    smallest = nested_classes(class_names, min(counts))
    found = {}
    for count in counts:
        chosen = nested_classes(class_names, count)
        found[count] = evaluate_text_attack(
            model,
            images.of_classes(smallest, among=chosen),
            [class_names[label] for label in chosen],
            template,
            attack,
            aim=aim,
            measure=measure,
            seed=seed,
        )
    return found


def _predictions(
    images: EncodedImages, weights_of: Callable[[Tensor], Tensor], scale: float, groups: Sequence[int] | None
) -> list[int]:
    """Classify images in parts, each with class weights `[C, D]` or `[B, C, D]` of its rows."""
    found: list[int] = []
    tied = None if groups is None else torch.tensor(groups, device=images.labels.device)
    for rows in torch.arange(len(images.labels), device=images.labels.device).split(IMAGES):
        logits = zero_shot_logits(images.features[rows], weights_of(rows), logit_scale=scale)
        labels = images.labels[rows]
        found += predict(logits, labels, ~is_correct(logits, labels, tied)).tolist()
    return found


def _with_own(weights: Tensor, own: Tensor, labels: Tensor) -> Tensor:
    """Give each image class weights of its own, `[B, C, D]`, in which the row of its label is another."""
    several = weights.expand(len(own), -1, -1).clone()
    several[torch.arange(len(own), device=own.device), labels] = own
    return several


def _unit(embedding: Tensor) -> Tensor:
    return F.normalize(embedding, dim=-1)


@torch.no_grad()
def _embed(model: CLIPModel, texts: Sequence[str]) -> Tensor:
    return torch.cat([model.embed_text(texts[start : start + TEXTS]) for start in range(0, len(texts), TEXTS)])
