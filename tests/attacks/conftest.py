from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ironclip.attacks.objectives import Misclassify
from ironclip.models.clip import CLIPModel
from ironclip.models.zero_shot import FixedClasses
from made_up_images import natural_like


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Task:
    """Samples and a classifier that is right about most of them."""

    classifier: FixedClasses
    pixels: Tensor
    labels: Tensor
    keys: list[str]

    def objective(self, loss: str = "ce") -> Misclassify:
        return Misclassify(self.classifier, self.labels, loss=loss)


@pytest.fixture(scope="session")
def clip_task(tiny_clip: Callable[..., CLIPModel]) -> Callable[..., Task]:
    """Make 64 samples of a tiny CLIP; at 1/510 about half of them break. Every eighth label is wrong on purpose.

    A class is an image's embedding relative to the mean: an untrained tower sends all images almost the same way.
    """

    def make(classes: int = 10, *, samples: int = 64) -> Task:
        model = tiny_clip()
        with torch.no_grad():
            middle = model.image_features(natural_like(64, 32, seed=5)).mean(dim=0)
            prototypes = model.image_features(natural_like(classes, 32, seed=4))
            classifier = FixedClasses(model, F.normalize(prototypes - middle, dim=1))
            pixels = natural_like(samples, 32, seed=3)
            labels = classifier.logits(pixels).argmax(dim=1)
        labels[::8] = (labels[::8] + 1) % classes
        return Task(classifier, pixels, labels, [f"made-up/{index:03d}" for index in range(samples)])

    return make
