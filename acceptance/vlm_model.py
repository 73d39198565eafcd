"""tiny-vlm without an attack: what it answers and says, against a twin that sees nothing and against other images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from acceptance.claims import ROOT, SHARED, CannotRunError, Claim, Context, Figure, at_least, at_most, item
from acceptance.vlm_metrics import FLICKR, FLICKR_FILES
from ironclip.attacks.driver import DriverSettings
from ironclip.attacks.vlm.speech import said_of
from ironclip.data.prompted import PromptedImage, open_prompted
from ironclip.evaluation.caption_tokens import caption_tokens
from ironclip.evaluation.cider import CiderD
from ironclip.evaluation.language_scores import exact_score
from ironclip.models.vlm import CAPTION_PROMPT, VisionLanguageModel
from ironclip.models.vlm_sources import BUNDLED_NAME, load_vlm
from ironclip.pretraining.vlm.recipe import load_vlm_recipe
from ironclip.pretraining.vlm.train import GRAY, train_vlm
from ironclip.randomness import rank_of

RECIPE = "recipes/vlm/tiny-vlm.yaml"
DECODER = f"src/ironclip/models/{BUNDLED_NAME}"
TINY_VLM = (f"{DECODER}/*", "src/ironclip/models/tiny/*")
SCENES = "bundled:shapes?split=scenes_test"
MEGABYTE = 1e6


def read(source: str, asked: str, count: int) -> list[PromptedImage]:
    """Read so many prompted images."""
    data = open_prompted(source, asked, prompt=CAPTION_PROMPT).limited(count)  # type: ignore[arg-type]  # a word of two
    return [data[position] for position in range(len(data))]


def spoken(model: VisionLanguageModel, images: list[PromptedImage], pixels: Tensor, tokens: int) -> list[str]:
    """Let a model speak of images `[N, 3, H, W]` in place of those that belong to the prompts."""
    return said_of(model, pixels, [image.prompt for image in images], DriverSettings(), max_new_tokens=tokens)


def accuracy(model: VisionLanguageModel, images: list[PromptedImage], pixels: Tensor) -> float:
    """Return the share of questions that a model answers rightly, in percent."""
    score = exact_score([image.references for image in images])
    said = spoken(model, images, pixels, 5)
    return 100 * sum(score(place, text) for place, text in enumerate(said)) / len(said)


def cider(model: VisionLanguageModel, images: list[PromptedImage], pixels: Tensor) -> float:
    """Return CIDEr-D times 100 of what a model says of images."""
    scorer = CiderD([[caption_tokens(text) for text in image.references] for image in images])
    return 100 * scorer.mean([caption_tokens(text) for text in spoken(model, images, pixels, 20)])


def other_places(images: list[PromptedImage]) -> list[int]:
    """Return for each image the place of another: the next one in an order by hash."""
    order = sorted(range(len(images)), key=lambda at: rank_of("permuted", images[at].key))
    following = dict(zip(order, [*order[1:], order[0]], strict=True))
    return [following[at] for at in range(len(images))]


def blind_twin(folder: Path) -> VisionLanguageModel:
    """Train the same decoder without the image, or go on with it."""
    train_vlm(load_vlm_recipe(ROOT / RECIPE, ["blind=true"]), folder, data_root=str(SHARED / "data"))
    return load_vlm(str(folder))


@item(
    "tiny_vlm",
    claims=(
        Claim("size", "tiny-vlm: decoder and words", at_most(25, "MB")),
        Claim("answers", "shapes, one question an image: right answers", at_least(90, "%")),
        Claim("captions", "Flickr8k: CIDEr over that of the same decoder with images permuted", at_least(2, "times")),
    ),
    modules=("ironclip.models.tiny_vlm", "ironclip.evaluation.cider", "ironclip.data.prompted"),
    files=(*TINY_VLM, *FLICKR_FILES),
)
def tiny_vlm(context: Context) -> Iterator[Figure]:
    size = sum(path.stat().st_size for path in (ROOT / DECODER).iterdir() if path.is_file())
    yield Figure("size", size / MEGABYTE)
    model = load_vlm(BUNDLED_NAME)
    asked = read(SCENES, "question", context.pick(2000, 50))
    right = accuracy(model, asked, _pixels(asked))
    yield Figure("answers", right, f"{right:.1f} % of {len(asked)} questions")
    images = read(FLICKR, "caption", context.pick(1000, 50))
    pixels = _pixels(images)
    own, other = cider(model, images, pixels), cider(model, images, pixels[other_places(images)])
    shown = f"{own:.1f} against {other:.1f}, {len(images)} images"
    yield Figure("captions", own / other if other else float("inf"), shown)


@item(
    "blind_twin",
    claims=(
        Claim("above", "shapes: answers above the same decoder, trained without the image", at_least(30, "points")),
    ),
    modules=("ironclip.pretraining.vlm.train", "ironclip.models.tiny_vlm", "ironclip.data.prompted"),
    files=(RECIPE, *TINY_VLM, "../shared/data/flickr8k/train-*.tar.gz"),
)
def twin(context: Context) -> Iterator[Figure]:
    if context.short:
        raise CannotRunError("half an hour of training")
    asked = read(SCENES, "question", 2000)
    seeing = accuracy(load_vlm(BUNDLED_NAME), asked, _pixels(asked))
    blind = accuracy(blind_twin(context.work / "blind"), asked, torch.full_like(_pixels(asked), GRAY))
    yield Figure("above", seeing - blind, f"{seeing:.1f} against {blind:.1f} %, {len(asked)} questions")


def _pixels(images: list[PromptedImage]) -> Tensor:
    return torch.stack([image.pixels for image in images])
