"""A sentence encoder: where a phrase lies according to one that has read a great deal.

Source: Reimers and Gurevych, EMNLP 2019, arXiv:1908.10084: the mean of the token vectors, as unit rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from ironclip.data.fingerprints import file_sha256, fingerprint
from ironclip.errors import MissingDependencyError, WeightsError
from ironclip.files import write_atomically
from ironclip.models._weights import read_weights

_BATCH = 256
_MOST_TOKENS = 128


class SentenceEncoder:
    """A BERT-like encoder of transformers in a local folder, read in float32 on the CPU.

    Attributes:
        sha256: Hash of its weights file, hex.

    Args:
        folder: With config.json, model.safetensors and the tokenizer's files, such as all-MiniLM-L6-v2.

    Raises:
        WeightsError: Files are missing.
        MissingDependencyError: transformers is not installed.
    """

    def __init__(self, folder: Path) -> None:
        for name in ("config.json", "model.safetensors", "tokenizer_config.json"):
            if not (folder / name).is_file():
                raise WeightsError(
                    f"there is no {folder / name}.", "Give the folder of a sentence encoder in transformers' layout."
                )
        try:
            from transformers import AutoModel, AutoTokenizer
        except ImportError:
            raise MissingDependencyError("transformers", "hf", purpose="the sentence encoder") from None
        self.sha256 = file_sha256(folder / "model.safetensors")
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model: Any = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        self._model = model.float().eval()

    def encode(self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None) -> Tensor:
        """Embed texts as unit rows, float32 `[N, S]`; beyond 128 tokens a text is cut.

        Args:
            texts: At least one.
            progress: Called with texts done and texts in all.
        """
        ids: list[list[int]] = self._tokenizer(list(texts), truncation=True, max_length=_MOST_TOKENS)["input_ids"]
        # Only texts of one length share a batch: nothing is padded, so nobody's neighbours matter.
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        rows: list[Tensor] = []
        with torch.inference_mode():
            while len(rows) < len(order):
                length = len(ids[order[len(rows)]])
                batch = [ids[row] for row in order[len(rows) : len(rows) + _BATCH] if len(ids[row]) == length]
                tokens = torch.tensor(batch)
                hidden = self._model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
                rows.extend(F.normalize(hidden.mean(dim=1), dim=-1).unbind())
                if progress:
                    progress(len(rows), len(order))
        embeddings = torch.empty(len(order), rows[0].shape[0])
        embeddings[order] = torch.stack(rows)
        return embeddings


def encode_once(
    encoder: SentenceEncoder, texts: Sequence[str], cache: Path, progress: Callable[[int, int], None] | None = None
) -> Tensor:
    """Embed texts as `SentenceEncoder.encode` does, or read what was kept of the same texts and weights.

    Args:
        encoder: The encoder.
        texts: At least one.
        cache: Folder of `sentence-HASH.safetensors` and `sentence-HASH.json` (the texts, for people).
        progress: See `SentenceEncoder.encode`; not called for what was kept.

    Raises:
        WeightsError: What was kept is damaged.
    """
    key = hashlib.sha256(f"{encoder.sha256}\n{fingerprint(texts)}".encode()).hexdigest()[:16]
    path = cache / f"sentence-{key}.safetensors"
    if not path.is_file():
        embeddings = encoder.encode(texts, progress)
        write_atomically(path.with_suffix(".json"), json.dumps(list(texts), ensure_ascii=False).encode())
        write_atomically(path, save({"embeddings": embeddings}))
    return read_weights(path)["embeddings"]
