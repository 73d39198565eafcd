"""What words mean to the bundled model: zero-shot accuracy on seen classes, on unseen ones, and on bundled images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from acceptance.claims import Claim, Context, Figure, at_least, item
from acceptance.tiny_model import DATA, MODEL, REPORTED, SHIPPED
from ironclip.attacks.objectives import is_correct
from ironclip.data.contract import Dataset
from ironclip.data.order import limit, read_batches
from ironclip.evaluation.intervals import Interval, mean_per_class_interval, wilson
from ironclip.models.clip import CLIPModel
from ironclip.models.sources import load_model
from ironclip.models.zero_shot import ZeroShotClassifier
from ironclip.report.wording import share
from ironclip.suites.suite import load_suite

BATCH = 250
SHORT = 250
"""Images a set in the short form: too few for a verdict."""
MODULES = ("ironclip.models.sources", "ironclip.models.zero_shot", "ironclip.suites.suite")
WORDS = ("src/ironclip/suites/natural.yaml", "src/ironclip/suites/classes/*.yaml")


@dataclass(frozen=True)
class ZeroShot:
    """Accuracy on a data set of a suite.

    Attributes:
        images: Share of its images, Wilson's interval.
        classes: Mean over classes of the share of their images, bootstrap within classes.
        count: How many images.
        chance: Share by guessing.
    """

    images: Interval
    classes: Interval
    count: int
    chance: float

    def __str__(self) -> str:
        guess = f"chance {100 * self.chance:.1f}"
        return f"{share(self.images)} of {self.count:,} images, {share(self.classes)} per class, {guess}"


def zero_shot(model: CLIPModel, suite: str, name: str, *, at_most: int | None = None) -> ZeroShot:
    """Classify a data set of a suite, all of it or the first images by hash of their key."""
    info = load_suite(suite, DATA).entry(name).open(strict=True)
    dataset: Dataset = info.dataset if at_most is None else limit(info.dataset, at_most)
    classifier = ZeroShotClassifier(model, info.class_names, info.templates)
    right: list[bool] = []
    labels: list[int] = []
    for batch in read_batches(dataset, range(len(dataset)), BATCH, strict=True, unreadable={}):
        truth = torch.tensor([sample.label for sample in batch])
        with torch.no_grad():
            logits = classifier.logits(torch.stack([sample.pixels for sample in batch]))
        right += is_correct(logits, truth).tolist()
        labels += truth.tolist()
    images, classes = wilson(sum(right), len(right)), mean_per_class_interval(right, labels)
    return ZeroShot(images, classes, len(right), info.chance)


@item(
    "zero_shot_seen",
    claims=[
        Claim("cifar10", "CIFAR-10 test, 10 seen classes: zero-shot top-1", at_least(72, "%")),
        Claim("tiny-imagenet", "Tiny-ImageNet test, 180 seen classes: zero-shot top-1", at_least(25, "%")),
        Claim("caltech101", "Caltech-101 test, 80 seen classes: zero-shot top-1", at_least(55, "%")),
    ],
    modules=MODULES,
    files=[
        *(SHIPPED + WORDS),
        *(f"../shared/data/{name}/test-*.tar.gz" for name in ("cifar10", "tiny_imagenet", "caltech101")),
    ],
)
def seen(context: Context) -> Iterator[Figure]:
    model = load_model(MODEL)
    for name, with_a_gpu in (("cifar10", 80), ("tiny-imagenet", 35), ("caltech101", 62)):
        found = zero_shot(model, "natural", name, at_most=context.pick(None, SHORT))
        shown = f"{found} (asked of a training on a GPU: {with_a_gpu} %)"
        yield _judged(name, found.images, shown, context)


@item(
    "zero_shot_unseen",
    claims=[
        Claim(
            "tiny-imagenet-unseen-20way",
            "Tiny-ImageNet, 20 unseen classes, 20-way: zero-shot per class",
            at_least(22, "%"),
        ),
        Claim(
            "caltech101-unseen-20way", "Caltech-101, 20 unseen classes, 20-way: zero-shot per class", at_least(32, "%")
        ),
        Claim("tiny-imagenet-unseen", "Tiny-ImageNet, the same images against all 200 names, per class", REPORTED),
        Claim("caltech101-unseen", "Caltech-101, the same images against all 100 names, per class", REPORTED),
    ],
    modules=MODULES,
    files=[
        *(SHIPPED + WORDS),
        *(f"../shared/data/{name}/test-*.tar.gz" for name in ("tiny_imagenet", "caltech101")),
    ],
)
def unseen(context: Context) -> Iterator[Figure]:
    model = load_model(MODEL)
    for name in ("tiny-imagenet-unseen-20way", "caltech101-unseen-20way", "tiny-imagenet-unseen", "caltech101-unseen"):
        found = zero_shot(model, "natural", name, at_most=context.pick(None, SHORT))
        yield _judged(name, found.classes, str(found), context)


@item(
    "zero_shot_bundled",
    claims=[
        Claim(
            "digits", "digits test (seen: the training split is in pre-training): zero-shot top-1", at_least(90, "%")
        ),
        Claim("shapes-heldout", "shapes, held-out pairs of colour and shape, against all 64: top-1", at_least(85, "%")),
        Claim("shapes", "shapes test (seen pairs), against all 64: top-1", REPORTED),
    ],
    modules=MODULES,
    files=[*SHIPPED, "src/ironclip/suites/bundled.yaml", "src/ironclip/suites/classes/*.yaml"],
)
def bundled(context: Context) -> Iterator[Figure]:
    model = load_model(MODEL)
    for name in ("digits", "shapes-heldout", "shapes"):
        found = zero_shot(model, "bundled", name)
        yield Figure(name, 100 * found.images.estimate, str(found))


def _judged(claim: str, interval: Interval, shown: str, context: Context) -> Figure:
    """Return the figure; in the short form it is shown and not judged."""
    if context.short:
        return Figure(claim, None, f"the short form: {shown}")
    return Figure(claim, 100 * interval.estimate, shown)
