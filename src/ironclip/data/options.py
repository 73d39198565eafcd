"""The options that every kind of source takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pydantic

from ironclip.data.images import Resizing
from ironclip.errors import ConfigError

_Side = Annotated[int, pydantic.Field(gt=0)]


@dataclass(frozen=True, kw_only=True)
class ReaderOptions:
    """Options common to all sources; a reader adds its own.

    Attributes:
        split: Which part of the data set.
        resize: Squeeze every image to N x N.
        size: Bring the shorter side to N, then cut the centre square.
    """

    split: str | None = None
    resize: _Side | None = None
    size: _Side | None = None

    def resizing(self) -> Resizing:
        """Return what is done to each image while it is 8-bit.

        Raises:
            ConfigError: Both `resize` and `size` are given.
        """
        if self.resize is not None and self.size is not None:
            raise ConfigError(
                f"resize={self.resize} and size={self.size} exclude each other.",
                "Give resize=N to squeeze the whole image to a square, size=N to cut its centre square.",
            )
        return Resizing(resize=self.resize, size=self.size)
