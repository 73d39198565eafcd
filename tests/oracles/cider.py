"""CIDEr-D from the formulas of the paper: dense tf-idf vectors over all phrases of one length, in float64."""

from __future__ import annotations

import numpy as np


def score(references, image, candidate):
    """Score a candidate (words) of one image against its references; `references` are those of all images."""
    total = 0.0
    for size in range(1, 5):
        known = sorted(
            {p for own in references for caption in own for p in runs(caption, size)} | set(runs(candidate, size))
        )
        if not known:
            continue
        frequency = np.array(
            [sum(any(p in runs(caption, size) for caption in own) for own in references) for p in known]
        )
        rarity = np.log(len(references) / np.maximum(frequency, 1.0))

        def vector(caption, known=known, size=size, rarity=rarity):
            return np.array([float(runs(caption, size).count(p)) for p in known]) * rarity

        said = vector(candidate)
        for reference in references[image]:
            real = vector(reference)
            norm = np.sqrt((said**2).sum() * (real**2).sum())
            if norm > 0:
                gap = len(runs(candidate, 2)) - len(runs(reference, 2))
                total += np.exp(-(gap**2) / 72) * (np.minimum(said, real) * real).sum() / norm
    return 10 * total / 4 / len(references[image])


def runs(words, size):
    return [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]
