"""What a data set is to the rest of IronCLIP: keys, and a sample for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One image with what is known of it.

    Attributes:
        key: Stable name, the same on every machine ("cifar10/test/000123"); all randomness hangs on it.
        pixels: Float32 `[3, H, W]` in [0, 1], not normalised.
        label: Index into the data set's class names, or None.
        captions: Texts that describe the image; empty where there are none.
    """

    key: str
    pixels: Tensor
    label: int | None = None
    captions: tuple[str, ...] = ()


class Dataset(Protocol):
    """A map from position to sample, in a canonical order that is the same on every machine.

    Attributes:
        source: The string that it was opened from.
        keys: One key a sample, unique.
        labels: One label a sample, or None where the set has none.
        class_names: Words for the labels, in label order; None where the source brings none.
        templates: Prompt templates of the source ("a photo of a {}."), or None.
        fingerprint: sha256 hex of the content (names and bytes, or names and sizes above 1 GiB).
        problems: What was lost when the source was opened, in words; empty where nothing was.
    """

    source: str
    keys: Sequence[str]
    labels: Sequence[int] | None
    class_names: Sequence[str] | None
    templates: Sequence[str] | None
    fingerprint: str
    problems: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> Sample:
        """Return a sample.

        Raises:
            UnreadableSampleError: The bytes cannot be decoded; carries key and reason, the caller counts it.
        """
        ...
