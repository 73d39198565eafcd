"""Retrieval between images and texts: who finds a match among the k nearest, and an interval for the share of them.

An image has several captions, so queries by text are not independent: five of them stand or fall with one image. The
interval draws whole images (a cluster bootstrap), not queries. Source: Field and Welsh, J. R. Statist. Soc. B 2007.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ironclip.errors import ShapeError, ValueRangeError
from ironclip.evaluation.intervals import BOOTSTRAP_DRAWS, Interval, wilson

Flags = npt.NDArray[np.bool_]


def hits_at_k(similarity: npt.ArrayLike, queries: npt.ArrayLike, targets: npt.ArrayLike, k: int) -> Flags:
    """Say for each query whether one of its matches is among the k nearest targets.

    A target matches a query if both belong to the same image. A match that ties with others stands behind them.

    Args:
        similarity: Float `[Q, T]`, large where near.
        queries: Integer `[Q]`, the image that each query belongs to.
        targets: Integer `[T]`, likewise.
        k: From 1 to T.

    Returns:
        Boolean `[Q]`.

    Raises:
        ShapeError: The shapes do not fit together.
        ValueRangeError: A similarity is not finite, k is out of range, or a query has no match.
    """
    scores, asked, offered = np.asarray(similarity, dtype=np.float64), np.asarray(queries), np.asarray(targets)
    if scores.ndim != 2 or asked.shape != scores.shape[:1] or offered.shape != scores.shape[1:]:
        raise ShapeError(
            f"similarities {scores.shape} for {asked.shape} queries and {offered.shape} targets.",
            "Give one row a query and one column a target.",
        )
    if not np.isfinite(scores).all():
        raise ValueRangeError("similarities are not all finite.", "Check the embeddings.")
    if not 1 <= k <= scores.shape[1]:
        raise ValueRangeError(f"k is {k}, of {scores.shape[1]} targets.", f"Give k from 1 to {scores.shape[1]}.")
    hits = np.empty(len(asked), dtype=bool)
    for row, (own, image) in enumerate(zip(scores, asked, strict=True)):
        matches = offered == image
        if not matches.any():
            raise ValueRangeError(f"query {row} (image {image}) has no match.", "Give targets of every image.")
        hits[row] = np.count_nonzero(own[~matches] >= own[matches].max()) < k
    return hits


def match_ranks(similarity: npt.ArrayLike, queries: npt.ArrayLike, targets: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the rank of each query's nearest match, from 1; what ties with it stands before it.

    Arguments and errors as in `hits_at_k`: a rank of at most k is a hit.
    """
    scores, asked, offered = np.asarray(similarity, dtype=np.float64), np.asarray(queries), np.asarray(targets)
    hits_at_k(scores, asked, offered, 1)  # refuses what does not fit
    own = asked[:, None] == offered[None]
    nearest = np.where(own, scores, -np.inf).max(axis=1, keepdims=True)
    ranks: npt.NDArray[np.int64] = 1 + (~own & (scores >= nearest)).sum(axis=1)
    return ranks


def chance_at_k(targets: int, matches: int, k: int) -> float:
    """Return the share of hits when the order of the targets is random.

    Args:
        targets: How many there are.
        matches: How many of them match a query.
        k: How many of the nearest count.

    Raises:
        ValueRangeError: More matches or nearest than targets.
    """
    if not (0 <= matches <= targets and 0 <= k <= targets):
        raise ValueRangeError(f"{matches} matches and the {k} nearest of {targets}.", "Give counts that fit.")
    return 1 - math.comb(targets - matches, k) / math.comb(targets, k)


def clustered_share(hits: npt.ArrayLike, clusters: npt.ArrayLike, *, draws: int = BOOTSTRAP_DRAWS) -> Interval:
    """Return the share of hits with a 95 % interval for queries that come in clusters.

    Clusters are drawn again, with all their queries (percentiles of the bootstrap). Where each query is a cluster of
    its own the interval is Wilson's.

    Args:
        hits: Boolean `[Q]`.
        clusters: Integer `[Q]`, the image that each query belongs to.
        draws: Number of bootstrap draws; the stream is fixed, so the same input gives the same interval.

    Raises:
        ShapeError: The lengths differ.
        ValueRangeError: There are no queries.
    """
    found, names = np.asarray(hits, dtype=bool), np.asarray(clusters)
    if found.ndim != 1 or found.shape != names.shape:
        raise ShapeError(f"hits have the shape {found.shape}, clusters {names.shape}.", "Give one of each per query.")
    if not found.size:
        raise ValueRangeError("a share of 0 queries.", "Give at least one query.")
    total = int(found.sum())
    _, index, sizes = np.unique(names, return_inverse=True, return_counts=True)
    if len(sizes) == found.size:
        return wilson(total, found.size)
    share = total / found.size
    if total in (0, found.size):
        # Drawing again from queries that are all alike would promise an interval of width zero.
        alone = wilson(len(sizes) if total else 0, len(sizes))
        return Interval(share, alone.low, alone.high)
    # Clusters of one size with as many hits are the same to the bootstrap: few kinds, drawn in one call.
    rights = np.bincount(index, weights=found).astype(np.int64)
    kinds, counts = np.unique(np.stack([rights, sizes]), axis=1, return_counts=True)
    generator = np.random.Generator(np.random.Philox(key=0))
    drawn = generator.multinomial(len(sizes), counts / len(sizes), size=draws)
    shares = (drawn @ kinds[0]) / (drawn @ kinds[1])
    low, high = np.quantile(shares, [0.025, 0.975])
    return Interval(share, min(float(low), share), max(float(high), share))
