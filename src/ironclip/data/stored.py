"""What all readers share: the columns of a data set in memory, an image decoded when it is asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from ironclip.data.contract import Sample
from ironclip.data.fingerprints import fingerprint
from ironclip.data.images import UNREADABLE, Resizing, to_pixels
from ironclip.errors import DataError, UnreadableSampleError


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Everything of a data set but its images.

    Attributes:
        source: The string that it was opened from.
        keys: One key a sample, unique, in canonical order.
        labels: One label a sample, or None.
        captions: Texts a sample, or None.
        class_names: Words for the labels, or None.
        templates: Prompt templates of the source, or None.
        content: sha256 hex of what is stored.
        problems: One line for each kind of loss met while opening, with its count.
    """

    source: str
    keys: Sequence[str]
    labels: Sequence[int] | None = None
    captions: Sequence[tuple[str, ...]] | None = None
    class_names: Sequence[str] | None = None
    templates: Sequence[str] | None = None
    content: str
    problems: tuple[str, ...] = ()


class StoredDataset(ABC):
    """A `Dataset` whose columns are in memory; a reader adds where an image comes from.

    Attributes:
        problems: One line for each kind of loss met while opening ("shard test-0001.tar is damaged: ..."); empty
            where nothing is missing. Images that turn out damaged when they are decoded are not among them.

    Args:
        columns: Everything but the images.
        resizing: What is done to each image.

    Raises:
        DataError: There is no sample.
    """

    def __init__(self, columns: Columns, resizing: Resizing) -> None:
        if not columns.keys:
            lost = "".join(f" {problem}" for problem in columns.problems)
            raise DataError(f"{columns.source} holds no readable sample.{lost}", "Check the path and the split.")
        self.source = columns.source
        self.keys = columns.keys
        self.labels = columns.labels
        self.class_names = columns.class_names
        self.templates = columns.templates
        self.problems = columns.problems
        self._captions = columns.captions
        self._resizing = resizing
        # Resized images are other images: a run on them must not be resumed on the originals.
        self.fingerprint = fingerprint([columns.content, str(resizing)]) if str(resizing) else columns.content

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, position: int) -> Sample:
        """Return the sample, its image decoded now.

        Raises:
            UnreadableSampleError: The image is damaged, gone, or not one.
        """
        key = self.keys[position]
        try:
            pixels = to_pixels(self._image(position), self._resizing)
        except UNREADABLE as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UnreadableSampleError(key, reason) from error
        label = None if self.labels is None else self.labels[position]
        return Sample(key, pixels, label, () if self._captions is None else self._captions[position])

    @abstractmethod
    def _image(self, position: int) -> Image.Image:
        """Return the image, decoded or not; what it raises of `images.UNREADABLE` makes an unreadable sample."""
