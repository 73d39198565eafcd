"""Captions and images that the bundled model has not seen: who finds whom among a thousand."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from acceptance.claims import Claim, Context, Figure, item
from acceptance.tiny_model import DATA, MODEL, REPORTED, SHIPPED
from ironclip.data.order import limit, read_batches
from ironclip.data.sources import open_dataset
from ironclip.evaluation.retrieval import chance_at_k, clustered_share, hits_at_k
from ironclip.models.sources import load_model
from ironclip.report.wording import share

NEAREST = 10
CAPTIONS = 5
BATCH = 250


@item(
    "retrieval",
    claims=[
        Claim(
            "image to text", "Flickr8k test: share of images with a caption of theirs among the 10 nearest", REPORTED
        ),
        Claim("text to image", "Flickr8k test: share of captions with their image among the 10 nearest", REPORTED),
    ],
    modules=["ironclip.models.sources", "ironclip.evaluation.retrieval", "ironclip.data.sources"],
    files=[*SHIPPED, "../shared/data/flickr8k/test-*.tar.gz"],
)
def retrieval(context: Context) -> Iterator[Figure]:
    data = open_dataset(f"wds:{DATA}/flickr8k?split=test&resize=32", strict=True)
    some = limit(data, context.pick(len(data), 100))
    model = load_model(MODEL)
    pictures: list[torch.Tensor] = []
    texts: list[str] = []
    with torch.no_grad():
        for batch in read_batches(some, range(len(some)), BATCH, strict=True, unreadable={}):
            pictures.append(model.image_features(torch.stack([sample.pixels for sample in batch])))
            texts += [caption for sample in batch for caption in sample.captions]
        if len(texts) != CAPTIONS * len(some):
            raise ValueError(f"{len(texts)} captions of {len(some)} images, expected {CAPTIONS} each")
        words = [model.text_features(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
    similarity = (torch.cat(pictures) @ torch.cat(words).T).numpy()
    images = torch.arange(len(some)).numpy()
    owners = images.repeat(CAPTIONS)
    for claim, scores, queries, targets, matches in (
        ("image to text", similarity, images, owners, CAPTIONS),
        ("text to image", similarity.T, owners, images, 1),
    ):
        hits = hits_at_k(scores, queries, targets, NEAREST)
        chance = chance_at_k(len(targets), matches, NEAREST)
        found = clustered_share(hits, queries)
        how = "Wilson" if claim == "image to text" else "whole images drawn again, 5 captions with each"
        shown = f"R@{NEAREST} {share(found)} of {len(queries):,} queries, chance {100 * chance:.1f} % (interval: {how})"
        yield Figure(claim, 100 * found.estimate, shown)
