"""What comes with the bundled model besides weights: its card, its size, and no photograph."""

from __future__ import annotations

import re
from collections.abc import Iterator

from acceptance.claims import Claim, Context, Figure, at_most, exactly, item
from acceptance.store import git
from acceptance.tiny_model import FOLDER, SHIPPED
from ironclip.data.fingerprints import file_sha256

HEADINGS = ("data", "recipe", "compute", "accuracy", "limits", "licen[cs]e")
WORDS = (
    *("seed", "hours", "seen", "unseen", "WordNet", "non-commercial"),
    *("CIFAR-10", "Tiny-ImageNet", "Caltech-101", "Flickr8k", "digits", "shapes"),
)
PICTURES = ("*.jpg", "*.jpeg", "*.png", "*.webp", "*.gif", "*.bmp", "*.tar", "*.tar.gz", "*.parquet", "*.npz")
SCREENSHOTS = "docs/images/"
"""Pictures of pages, which show bundled images only."""


@item(
    "model_card",
    claims=[
        Claim("size", "float16 safetensors", at_most(25, "MB")),
        Claim("sha256", "the card states the sha256 of the weights (1: it does)", exactly(1)),
        Claim(
            "card",
            "data, recipe, seed, hours, accuracies, limits, licence of each source (what is missing)",
            exactly(0),
        ),
        Claim(
            "pictures",
            "no photograph of these sets is committed (pictures and archives outside docs/images)",
            exactly(0),
        ),
    ],
    modules=[],
    files=SHIPPED,
    state=lambda: "\n".join(pictures()),
)
def model_card(context: Context) -> Iterator[Figure]:
    weights = FOLDER / "open_clip_model.safetensors"
    yield Figure("size", weights.stat().st_size / 1e6)
    card, sha256 = (FOLDER / "README.md").read_text(encoding="utf-8"), file_sha256(weights)
    yield Figure("sha256", float(sha256 in card), sha256)
    missing = lacking(card)
    yield Figure("card", len(missing), f"missing: {', '.join(missing)}" if missing else "")
    found = pictures()
    yield Figure("pictures", len(found), ", ".join(found))


def lacking(card: str) -> list[str]:
    """Return the headings and words that a model card must have and this one has not."""
    headings = "\n".join(re.findall(r"^#+ (.*)", card, re.MULTILINE))
    return [
        *(f'heading "{word}"' for word in HEADINGS if not re.search(rf"\b{word}", headings, re.IGNORECASE)),
        *(f'"{word}"' for word in WORDS if not re.search(rf"(?<![\w-])(?:{word})\b", card, re.IGNORECASE)),
    ]


def pictures() -> list[str]:
    """Return the committed files that might hold photographs."""
    listed = git("ls-files", "--", *PICTURES).splitlines()
    return [path for path in listed if not path.startswith(SCREENSHOTS)]
