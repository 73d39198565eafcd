"""Random draws that belong to a sample, not to a batch.

Every draw is a function of (seed, sample key, purpose), in training also of the epoch: never of batch size, order,
worker, rank or neighbours. No global random state is read or written.

Source: evaluation plan 6.1; Philox is the counter-based generator of Salmon et al., SC 2011, as numpy documents it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def digest(*parts: object) -> bytes:
    """Hash the parts to 16 bytes; equal on every machine and Python version."""
    return hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=16).digest()


def rank_of(*parts: object) -> int:
    """Return a uniformly distributed integer below 2**64 that depends on the parts only (for order, limits, shards)."""
    return int.from_bytes(digest(*parts)[:8], "big")


@dataclass(frozen=True)
class SampleRandom:
    """The random streams of the samples of one batch.

    Args:
        seed: Seed of the run.
        keys: One stable key a sample, in batch order.
        scope: What distinguishes draws of the same sample: epoch in training; attack and restart in evaluation.
    """

    seed: int
    keys: Sequence[str]
    scope: str = ""

    def take(self, rows: Sequence[int] | Tensor) -> SampleRandom:
        """Return the streams of the given rows."""
        return SampleRandom(self.seed, [self.keys[int(row)] for row in rows], self.scope)

    def generator(self, row: int, purpose: str) -> np.random.Generator:
        """Return the generator of one sample for one purpose; calling it twice gives the same stream twice."""
        key = int.from_bytes(digest(self.seed, self.keys[row], self.scope, purpose), "big")
        return np.random.Generator(np.random.Philox(key=key))

    def uniform(self, shape: Sequence[int], low: float, high: float, purpose: str) -> Tensor:
        """Draw float32 `[B, *shape]` from the uniform distribution on [low, high)."""
        if not len(self.keys):
            return torch.empty((0, *shape))
        unit = np.stack(
            [self.generator(row, purpose).random(tuple(shape), dtype=np.float32) for row in range(len(self.keys))]
        )
        return torch.from_numpy(unit) * (high - low) + low

    def normal(self, shape: Sequence[int], purpose: str) -> Tensor:
        """Draw float32 `[B, *shape]` from the standard normal distribution."""
        if not len(self.keys):
            return torch.empty((0, *shape))
        draws = [
            self.generator(row, purpose).standard_normal(tuple(shape), dtype=np.float32)
            for row in range(len(self.keys))
        ]
        return torch.from_numpy(np.stack(draws))
