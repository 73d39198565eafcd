"""Masked language models of transformers, from a local folder, as BERT-Attack reads them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ironclip.errors import MissingDependencyError, WeightsError

BATCH = 32
"""Texts a pass through the language model."""


class TransformersLanguageModel:
    """A masked language model with a WordPiece tokenizer (BERT and its kin).

    Args:
        model: `AutoModelForMaskedLM`.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer

    def pieces(self, word: str) -> list[int]:
        """Return the ids of a word's tokens."""
        ids: list[int] = self.tokenizer.convert_tokens_to_ids(self.tokenizer.tokenize(word))
        return ids

    def fill(self, sequences: Sequence[Sequence[int]], count: int) -> list[tuple[Tensor, Tensor]]:
        """Return the best ids and their raw logits at each place, [CLS] and [SEP] included."""
        found = []
        for logits in self._logits(sequences):
            scores, ids = logits.topk(min(count, logits.shape[-1]), dim=-1)
            found.append((ids, scores))
        return found

    def perplexity(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Return exp(mean cross-entropy) of each sequence between its marks."""
        return [
            float(F.cross_entropy(logits[1:-1].double(), torch.tensor(list(ids))).exp())
            for ids, logits in zip(sequences, self._logits(sequences), strict=True)
        ]

    def word(self, ids: Sequence[int]) -> str:
        """Write tokens as one word: a piece of a word keeps its mark "##", and the model's own marks are no word."""
        if set(ids) & set(self.tokenizer.all_special_ids):
            return ""
        tokens = self.tokenizer.convert_ids_to_tokens(list(ids))
        text: str = self.tokenizer.convert_tokens_to_string(tokens) if len(tokens) > 1 else tokens[0]
        return text

    def _logits(self, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return logits `[L + 2, V]` of each sequence on the CPU, padding cut off."""
        found: list[Tensor] = []
        tokenizer, device = self.tokenizer, self.model.device
        for start in range(0, len(sequences), BATCH):
            marked = [
                [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id] for ids in sequences[start : start + BATCH]
            ]
            longest = max(map(len, marked))
            ids = torch.tensor([one + [tokenizer.pad_token_id] * (longest - len(one)) for one in marked])
            mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in marked])
            with torch.no_grad():
                logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits.float().cpu()
            found += [row[: len(one)] for row, one in zip(logits, marked, strict=True)]
        return found


@functools.lru_cache(maxsize=2)
def load_masked_language_model(folder: str, device: str = "cpu") -> TransformersLanguageModel:
    """Load a masked language model from a local folder; nothing is downloaded, no code of the folder is run.

    Args:
        folder: With config.json, weights and the tokenizer's files.
        device: Where to put it.

    Raises:
        WeightsError: There is no such folder, or it holds no masked language model with [CLS], [SEP] and [PAD].
        MissingDependencyError: transformers is not installed.
    """
    if not (Path(folder) / "config.json").is_file():
        raise WeightsError(
            f"there is no masked language model in {folder}.",
            "Give a folder with config.json, weights and tokenizer, such as bert-base-uncased; or use synonyms.",
        )
    try:
        from transformers import AutoModelForMaskedLM, AutoTokenizer
    except ImportError:
        raise MissingDependencyError("transformers", "hf", purpose="the text attack bert_attack") from None
    try:
        model = AutoModelForMaskedLM.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{folder} holds no masked language model: {str(error).splitlines()[0]}",
            "Give a folder with config.json, model.safetensors and tokenizer, such as bert-base-uncased.",
        ) from None
    if None in (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id):
        raise WeightsError(f"the tokenizer in {folder} lacks [CLS], [SEP] or [PAD].", "Use a BERT.")
    return TransformersLanguageModel(model.to(device), tokenizer)
