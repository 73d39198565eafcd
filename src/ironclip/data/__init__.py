"""Data: sources, their samples, the order in which they are read, and the words for their classes."""

from ironclip.data.contract import Dataset, Sample
from ironclip.data.sources import open_dataset

__all__ = ["Dataset", "Sample", "open_dataset"]
