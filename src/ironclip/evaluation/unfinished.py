"""The chunk under way in a list of attacks: what is known after each attack, so that a kill costs one attack at most.

    RUN/unfinished/<unit>/<chunk>-<hash of its samples>-<attacks done>-<sha8>.safetensors

It holds verdicts and images of all samples of the chunk, the broken ones too. Nothing else reads these files, and they
go when the rows of the chunk are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch

from ironclip.attacks.sequence import SequenceOutcome
from ironclip.files import hashed_files, read_hashed, write_hashed
from ironclip.randomness import digest


@dataclass(frozen=True)
class Unfinished:
    """The folder of one unit, in which one chunk at a time is under way."""

    folder: Path

    def save(self, chunk: str, keys: Sequence[str], outcome: SequenceOutcome) -> None:
        """Store what is known of the samples of a chunk, and drop what was known before."""
        tensors = {name: tensor.contiguous() for name, tensor in outcome.tensors().items()}
        stem = f"{_prefix(chunk, keys)}{outcome.finished}"
        written = write_hashed(self.folder, stem, ".safetensors", safetensors.torch.save(tensors))
        for file in self._files():
            if file != written:
                file.unlink()

    def load(self, chunk: str, keys: Sequence[str]) -> SequenceOutcome | None:
        """Return what is known of exactly these samples of a chunk; a damaged file counts as absent."""
        contents = [read_hashed(file) for file in self._files() if file.name.startswith(_prefix(chunk, keys))]
        outcomes = [
            SequenceOutcome.of_tensors(safetensors.torch.load(content)) for content in contents if content is not None
        ]
        return max(outcomes, key=lambda outcome: outcome.finished, default=None)

    def clear(self) -> None:
        """Drop everything: the chunk is stored."""
        for file in self._files():
            file.unlink()

    def _files(self) -> list[Path]:
        return hashed_files(self.folder, ".safetensors")


def _prefix(chunk: str, keys: Sequence[str]) -> str:
    return f"{chunk}-{digest(*keys).hex()}-"
