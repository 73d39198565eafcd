"""Text attacks on what the methods of the text tower made of the bundled model, and against how many classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from acceptance.claims import CannotRunError, Claim, Context, Figure, at_least, item
from acceptance.methods_natural import DATA, SEEDS, TINY, TRAINED, sealed, tuned, weights_of
from acceptance.methods_ranking import IMAGES, ORIGINAL, REPORTED, points
from ironclip.attacks.text.base import TEXT_ATTACKS
from ironclip.data.order import limit
from ironclip.data.sources import open_dataset
from ironclip.evaluation.comparison import contest
from ironclip.evaluation.text_attack import EncodedImages, against_class_counts, encode_images, evaluate_text_attack
from ironclip.models.sources import load_model

TEMPLATE = "a photo of a {}."
ATTACKED_BY = {"mmcoa": ("synonyms", {"words": 1}), "leaf": ("charmer", {"edits": 1})}
"""The threat that a method is tuned against, by an attack of its paper's kind: one word, one character."""
COUNTS = (10, 50, 100, 200)


@dataclass(frozen=True)
class Source:
    """A model under text attack on Tiny-ImageNet's test images."""

    source: str

    @cached_property
    def model(self):  # type: ignore[no-untyped-def]  # its class is that of load_model
        return load_model(self.source)

    @cached_property
    def class_names(self) -> list[str]:
        names = open_dataset(f"wds:{DATA}/tiny_imagenet?split=test").class_names
        if names is None:
            raise CannotRunError("../shared/data/tiny_imagenet has no class names")
        return list(names)

    @cached_property
    def images(self) -> EncodedImages:
        data = limit(open_dataset(f"wds:{DATA}/tiny_imagenet?split=test"), IMAGES)
        return encode_images(self.model, data, range(len(data)))

    def robust(self, method: str) -> npt.NDArray[np.bool_]:
        """Return which images are right with clean and with attacked prompts, `[N]`."""
        name, options = ATTACKED_BY[method]
        found = evaluate_text_attack(
            self.model, self.images, self.class_names, TEMPLATE, TEXT_ATTACKS.create(name, options)
        )
        return np.array([one.robust for one in found.verdicts])


def _state() -> str:
    return " ".join(weights_of(name) for name in ATTACKED_BY if name in TRAINED)


@item(
    "text",
    claims=(
        *(
            Claim(
                f"above {name}",
                f"Tiny-ImageNet's prompts under {attack}: {name} above the original, lower end of the interval",
                at_least(1e-9, "points"),
            )
            for name, (attack, _) in ATTACKED_BY.items()
        ),
        *(
            Claim(f"counts {attack}", f"the original's fall under {attack} by the number of classes", REPORTED)
            for attack, _ in ATTACKED_BY.values()
        ),
    ),
    modules=("ironclip.evaluation.text_attack", "ironclip.evaluation.comparison", "ironclip.attacks.text.characters"),
    files=("../shared/data/tiny_imagenet/test-*.tar.gz", TINY),
    state=_state,
)
def text(context: Context) -> Iterator[Figure]:
    """Attack the prompts of all 200 classes; and those of fewer, on the same images."""
    if context.short:
        raise CannotRunError("it needs the tuned models")
    original = Source("tiny")
    for name in ATTACKED_BY:
        if name not in TRAINED:
            yield Figure(f"above {name}", None, f"there is no recipes/natural-methods/{name}.yaml, or no such method")
            continue
        sealed(name, context.work / name)
        ours = np.stack([Source(str(tuned(name, seed))).robust(name) for seed in SEEDS])
        found = contest(name, ours, ORIGINAL, original.robust(name))
        yield Figure(f"above {name}", 100 * found.low, points(found))
    for attack, options in ATTACKED_BY.values():
        results = against_class_counts(
            original.model, original.images, original.class_names, TEMPLATE,
            TEXT_ATTACKS.create(attack, options), counts=COUNTS,
        )  # fmt: skip
        falls = {
            count: 100 * (one.clean_accuracy.estimate - one.robust_accuracy.estimate) for count, one in results.items()
        }
        shown = ", ".join(f"{count} classes: {fall:.1f} points" for count, fall in falls.items())
        yield Figure(f"counts {attack}", falls[COUNTS[-1]] - falls[COUNTS[0]], shown)
