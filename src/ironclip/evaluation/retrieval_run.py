"""Evaluate retrieval between images and their captions under attack, query by query.

What is attacked is said, since the numbers differ by it:

    image-query    each image looks for its captions; the image is changed
    text-query     each caption looks for its image; the caption is changed
    gallery-image  each caption looks for its image; the image in the gallery is changed, against all its captions
    both           each caption looks for its image; first the caption is changed, then the image against it

All that is not attacked is the whole clean gallery, never a batch. An image is left when its match has fallen out of
the ten nearest. Source: evaluation plan 7.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ironclip.attacks.base import Attack
from ironclip.attacks.driver import DriverSettings, Outcome, exact_float32, run_attack
from ironclip.attacks.retrieval import MissTexts, Vanish
from ironclip.attacks.text.base import TextAttack
from ironclip.attacks.text.objectives import MissImage
from ironclip.data.images import stack_images
from ironclip.data.order import limit, read_batches
from ironclip.data.sources import open_dataset
from ironclip.errors import ConfigError, DataError
from ironclip.evaluation.describing import attack_info
from ironclip.evaluation.records import AttackInfo
from ironclip.evaluation.retrieval import match_ranks
from ironclip.evaluation.task_figures import NEAREST
from ironclip.evaluation.task_run import (
    TaskProgress,
    TaskRequest,
    chunks_of,
    driver_for,
    finish,
    kept_images,
    open_store,
    probe_rows,
)
from ironclip.evaluation.task_store import TaskStore
from ironclip.models.clip import CLIPModel
from ironclip.models.sources import load_model
from ironclip.randomness import SampleRandom

BATCH = 64
"""Images or texts encoded at a time, whatever the tile: a feature must not hang on it."""

Attacked = Literal["image-query", "text-query", "gallery-image", "both"]


@dataclass(frozen=True, kw_only=True)
class RetrievalRequest(TaskRequest):
    """What to search, and what is attacked in it.

    Attributes:
        attacked: See above.
        attack: On images; None where only texts are attacked.
        text_attack: On texts; None where only images are.
    """

    attacked: Attacked
    attack: Attack | None = None
    text_attack: TextAttack | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        needs = (self.attacked != "text-query", self.attacked in ("text-query", "both"))
        if needs != (self.attack is not None, self.text_attack is not None):
            kinds = [kind for kind, needed in zip(("images", "texts"), needs, strict=True) if needed]
            raise ConfigError(
                f'"{self.attacked}" needs an attack on {" and one on ".join(kinds)}, and no other.', "Give just that."
            )

    @property
    def attack_info(self) -> AttackInfo:
        """Names and settings of the attacks."""
        members = [] if self.attack is None else [attack_info(self.attack)]
        if self.text_attack is not None:
            settings = asdict(self.text_attack)  # type: ignore[call-overload]  # every attack is a dataclass
            members.insert(0, AttackInfo(name=self.text_attack.name, settings=settings))
        return AttackInfo(name=self.attacked, title=" then ".join(one.label for one in members), members=tuple(members))


def evaluate_retrieval(
    request: RetrievalRequest, *, progress: Callable[[TaskProgress], None] | None = None
) -> TaskStore:
    """Rank matches with clean and with attacked queries or galleries, and store a row a query.

    Raises:
        ConfigError: A source is not understood.
        DataError: Data are missing, without captions, too few, or unreadable: a gallery is scored as a whole.
        ResumeError: `out` holds another run.
    """
    model = load_model(request.model, device=request.device)
    search = _Search.read(request, model)
    rows = torch.tensor(probe_rows(len(search.keys)))
    driver, invariance = driver_for(request, search.missing(rows), search.pixels[rows])
    store = open_store(
        request,
        "retrieval",
        identity=model.spec.sha256,
        model_name=request.model,
        fingerprint=search.fingerprint,
        keys=search.keys,
        size=(search.pixels.shape[-2], search.pixels.shape[-1]),
        attack=request.attack_info,
        settings={"attacked": request.attacked, "captions": len(search.captions)},
        driver=driver,
        invariance=invariance,
    )
    done, finished = store.done_chunks(), 0
    for chunk, positions in chunks_of(search.keys):
        if chunk not in done:
            found, attacked = search.attack(positions, driver)
            keys = [search.keys[at] for at in positions]
            images = None
            if request.attack is not None:
                images = kept_images(request, search.keys, keys, search.pixels[positions], attacked)
            store.write_chunk(chunk, found, images)
        finished += len(positions)
        if progress:
            progress(TaskProgress(finished, len(search.keys), "stored"))
    return finish(store)


@dataclass(frozen=True)
class _Search:
    """A set of images with captions, encoded.

    Attributes:
        request: What is asked.
        model: The model.
        fingerprint: Of the data.
        keys: One an image.
        pixels: `[M, 3, H, W]`.
        captions: All, image by image.
        owners: `[T]` int64, the image of each caption.
    """

    request: RetrievalRequest
    model: CLIPModel
    fingerprint: str
    keys: list[str]
    pixels: Tensor
    captions: list[str]
    owners: Tensor

    @classmethod
    def read(cls, request: RetrievalRequest, model: CLIPModel) -> _Search:
        """Read the whole set."""
        data = open_dataset(request.source, strict=True)
        some = data if request.limit is None else limit(data, request.limit)
        samples = [
            sample
            for batch in read_batches(some, range(len(some)), BATCH, strict=True, unreadable={})
            for sample in batch
        ]
        least = NEAREST[-1] + 1
        if len(samples) < least or not all(sample.captions for sample in samples):
            without = sum(not sample.captions for sample in samples)
            raise DataError(
                f"{request.data} has {len(samples)} images, {without} of them without a caption.",
                f"Give {least} images or more, each with captions.",
            )
        captions = [caption for sample in samples for caption in sample.captions]
        owners = [image for image, sample in enumerate(samples) for _ in sample.captions]
        pixels = stack_images([sample.pixels for sample in samples], request.data)
        keys = [sample.key for sample in samples]
        return cls(request, model, data.fingerprint, keys, pixels, captions, torch.tensor(owners))

    @cached_property
    def images(self) -> Tensor:
        """Unit features of the clean images, `[M, D]`."""
        return _encoded(self.model, self.pixels)

    @cached_property
    def texts(self) -> Tensor:
        """Unit features of the clean captions, `[T, D]`."""
        return _texts(self.model, self.captions)

    def missing(self, rows: Tensor) -> MissTexts:
        """Return what an attack on queries by image wants, for some images."""
        own = self.owners[None] == rows[:, None]
        return MissTexts(self.model, self.texts, own.to(self.texts.device), NEAREST[-1])

    def attack(self, positions: Sequence[int], driver: DriverSettings) -> tuple[list[dict[str, Any]], Tensor]:
        """Attack the queries of some images; returns their rows and the attacked images `[N, 3, H, W]`."""
        rows = torch.tensor(positions)
        if self.request.attacked == "image-query":
            return self._image_queries(rows, driver)
        asked = torch.where(torch.isin(self.owners, rows))[0]
        spoken = [self.captions[at] for at in asked.tolist()]
        if self.request.text_attack is not None:
            objective = MissImage(self.model, self.images, self.owners[asked].to(self.images.device), NEAREST[-1])
            random = SampleRandom(self.request.seed, [self._query(at) for at in asked.tolist()], "retrieval")
            with exact_float32(self.model.device):
                spoken = self.request.text_attack.perturb(objective, spoken, random)
        queries, points, spent = _texts(self.model, spoken), self.pixels[rows], None
        if self.request.attack is not None:
            spent = self._vanish(rows, asked, queries, driver)
            points = spent.adversarial
        return self._text_rows(rows, asked, spoken, queries, points, spent), points

    def _image_queries(self, rows: Tensor, driver: DriverSettings) -> tuple[list[dict[str, Any]], Tensor]:
        found = self._run(self.missing(rows), rows, driver)
        similarity = [
            features @ self.texts.T for features in (self.images[rows], _encoded(self.model, found.adversarial))
        ]
        owners, texts = rows.numpy(), self.owners.numpy()
        ranks = [match_ranks(one.cpu().numpy(), owners, texts) for one in similarity]
        nearest = [one.argmax(dim=1).tolist() for one in similarity]
        lines = [
            {
                **self._shared(self.keys[image], image, found, at),
                "direction": "image to text",
                "query": "",
                "query_attacked": "",
                "rank_clean": int(ranks[0][at]),
                "rank_attacked": int(ranks[1][at]),
                "found_clean": self.captions[nearest[0][at]],
                "found_attacked": self.captions[nearest[1][at]],
            }
            for at, image in enumerate(rows.tolist())
        ]
        return lines, found.adversarial

    def _vanish(self, rows: Tensor, asked: Tensor, queries: Tensor, driver: DriverSettings) -> Outcome:
        """Change images of the gallery so that their own captions, as they are asked, do not find them."""
        similarity = queries @ self.images.T
        others = similarity.scatter(1, self.owners[asked].to(similarity.device)[:, None], -torch.inf)
        ahead = others.topk(NEAREST[-1], dim=1).values
        own = (self.owners[asked][None] == rows[:, None]).to(queries.device)
        return self._run(Vanish(self.model, queries, own, ahead[:, 0], ahead[:, -1]), rows, driver)

    def _run(self, objective: MissTexts | Vanish, rows: Tensor, driver: DriverSettings) -> Outcome:
        if self.request.attack is None:
            raise TypeError("an attack on images is run where there is one")
        keys, seed = [self.keys[at] for at in rows.tolist()], self.request.seed
        return run_attack(
            self.request.attack, objective, self.pixels[rows], keys, self.request.threat, seed=seed, settings=driver
        )

    def _text_rows(
        self, rows: Tensor, asked: Tensor, spoken: Sequence[str], queries: Tensor, points: Tensor, spent: Outcome | None
    ) -> list[dict[str, Any]]:
        """Rank the images for each caption: the clean ones for the clean text, then as the adversary left both."""
        clean = self.texts[asked] @ self.images.T
        attacked = queries @ self.images.T
        features, place = _encoded(self.model, points), {image: at for at, image in enumerate(rows.tolist())}
        at_own = torch.tensor([place[int(owner)] for owner in self.owners[asked]])
        # Each query meets its own attacked image among the clean ones of all others.
        own = (queries * features[at_own.to(features.device)]).sum(dim=1, keepdim=True)
        attacked = attacked.scatter(1, self.owners[asked].to(attacked.device)[:, None], own)
        owners, gallery = self.owners[asked].numpy(), np.arange(len(self.keys))
        ranks = [match_ranks(one.cpu().numpy(), owners, gallery) for one in (clean, attacked)]
        nearest = [one.argmax(dim=1).tolist() for one in (clean, attacked)]
        return [
            {
                **self._shared(self._query(text), int(owners[at]), spent, int(at_own[at])),
                "direction": "text to image",
                "query": self.captions[text],
                "query_attacked": spoken[at],
                "rank_clean": int(ranks[0][at]),
                "rank_attacked": int(ranks[1][at]),
                "found_clean": self.keys[nearest[0][at]],
                "found_attacked": self.keys[nearest[1][at]],
            }
            for at, text in enumerate(asked.tolist())
        ]

    def _query(self, text: int) -> str:
        """Return the name of a query by text: its image, and which of its captions it is."""
        owner = int(self.owners[text])
        return f"{self.keys[owner]}#{text - int((self.owners < owner).sum())}"

    def _shared(self, name: str, image: int, spent: Outcome | None, at: int) -> dict[str, Any]:
        return {
            "sample_id": name,
            "image_id": self.keys[image],
            "norm": 0.0 if spent is None else float(spent.norm[at]),
            "forwards": 0 if spent is None else int(spent.forwards[at]),
            "backwards": 0 if spent is None else int(spent.backwards[at]),
        }


@torch.no_grad()
def _encoded(model: CLIPModel, pixels: Tensor) -> Tensor:
    """Return unit features of images, each batch filled up with its first row."""
    parts = []
    with exact_float32(model.device):
        for own in torch.arange(len(pixels)).split(BATCH):
            rows = torch.cat([own, own[:1].repeat(BATCH - len(own))])
            parts.append(model.image_features(pixels[rows].to(model.device))[: len(own)])
    return torch.cat(parts)


@torch.no_grad()
def _texts(model: CLIPModel, texts: Sequence[str]) -> Tensor:
    """Return unit features of texts, each batch filled up with its first text."""
    parts = []
    with exact_float32(model.device):
        for start in range(0, len(texts), BATCH):
            own = list(texts[start : start + BATCH])
            parts.append(model.text_features(own + own[:1] * (BATCH - len(own)))[: len(own)])
    return torch.cat(parts)
