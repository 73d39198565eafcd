"""Word substitutions: the words that matter most first, each replaced by the substitute that does most harm.

Source: BERT-Attack (Li et al., EMNLP 2020, arXiv:2004.09984) in the form that Co-Attack and MMCoA (arXiv:2404.19287)
run on CLIP. Words are what single spaces separate. A word's importance is what the objective says of the text with
"[UNK]" in its place. Words are tried in falling importance, stop words not at all, until the budget is spent; the
original is a candidate too, and a word that stays costs nothing.

Where substitutes come from:

    bert_attack  a masked language model that sees the whole text: its best tokens at the word's place.
    synonyms     a table, {word: [substitutes]}; the bundled one was written down for this project and is small.

Deviations: texts keep their case and spaces, where published code passes them through BERT's lower-casing tokenizer;
a token's place counts the leading [CLS] (`variant: code` forgets it, as published: substitutes then belong to the token
before).
"""

from __future__ import annotations

import functools
import itertools
import json
import string
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from ironclip.attacks.text.base import TextAttack, best_of, evaluate, register_text_attack
from ironclip.attacks.text.budget import Budget
from ironclip.attacks.text.language_models import load_masked_language_model
from ironclip.attacks.text.objectives import TextObjective
from ironclip.errors import ConfigError, DataError
from ironclip.randomness import SampleRandom

UNKNOWN = "[UNK]"
"""Stands in the place of a word while its importance is measured."""

STOP_WORDS = frozenset(
    """a about above after again against ain all almost along already also although always am among amongst an and
    another any anyhow anyone anything anyway are aren't around as at be because been before beforehand behind being
    below beside besides between beyond both but by can cannot could couldn't did didn't do does doesn't doing don't
    down during each either else elsewhere enough even ever every everyone everything for former from further had
    hadn't has hasn't have haven't having he hence her here hers herself him himself his how however i if in indeed
    into is isn't it it's its itself just latter least many may me might mine more moreover most much must my myself
    neither never nevertheless no nobody none nor not nothing now nowhere of off often on once one only onto or other
    others otherwise our ours ourselves out over own per perhaps please rather same she should shouldn't since so some
    somehow someone something sometime somewhere still such than that the their theirs them themselves then there
    therefore these they this those though through thus to together too toward towards under unless until up upon us
    used very via was wasn't we well were weren't what whatever when whenever where whereas wherever whether which
    while who whoever whole whom whose why with within without won't would wouldn't yet you your yours yourself
    yourselves""".split()  # noqa: SIM905  # 250 quoted words would be a page
) | frozenset(string.punctuation)

Substitutes = list[list[str]]
"""Of one text: for each of its words, what may take its place."""


@dataclass(frozen=True, kw_only=True)
class _Words(TextAttack):
    """The search; where substitutes come from, a subclass says.

    Attributes:
        words: How many words may change.
    """

    words: int = 1

    def __post_init__(self) -> None:
        if self.words < 0:
            raise ConfigError(f"the text attack's words are {self.words}.", "Give a number of at least 0.")

    @property
    def budget(self) -> Budget:
        """So many words."""
        return Budget(words=self.words)

    @abstractmethod
    def substitutes(self, texts: Sequence[str], device: torch.device) -> list[Substitutes]:
        """Return for each word of each text what may take its place; for stop words nothing."""

    def search(self, objective: TextObjective, texts: Sequence[str], random: SampleRandom) -> list[str]:
        """Replace words in falling importance, all texts at once; draws nothing."""
        distinct = list(dict.fromkeys(texts))
        offered = dict(zip(distinct, self.substitutes(distinct, objective.device), strict=True))
        queues = self._in_order_of_importance(objective, texts, [offered[text] for text in texts])
        found, left = list(texts), [self.words] * len(texts)
        while True:
            rows = [row for row, queue in enumerate(queues) if queue and left[row]]
            if not rows:
                return found
            candidates = []
            for row in rows:
                word = queues[row].pop(0)
                parts = found[row].split(" ")
                others = [" ".join([*parts[:word], new, *parts[word + 1 :]]) for new in offered[texts[row]][word]]
                candidates.append([found[row], *others])
            part = objective.take(torch.tensor(rows, device=objective.device))
            for row, others, evaluation in zip(rows, candidates, evaluate(part, candidates), strict=True):
                chosen = best_of(evaluation, objective.tie_tolerance)
                if chosen:
                    found[row], left[row] = others[chosen], left[row] - 1
                if bool(evaluation.broken[chosen]):
                    left[row] = 0

    def _in_order_of_importance(
        self, objective: TextObjective, texts: Sequence[str], offered: Sequence[Substitutes]
    ) -> list[list[int]]:
        """List for each text the words that can be replaced, the most important first."""
        masked = []
        for text in texts:
            words = text.split(" ")
            masked.append([" ".join([*words[:i], UNKNOWN, *words[i + 1 :]]) for i in range(len(words))])
        queues = []
        for evaluation, substitutes in zip(evaluate(objective, masked), offered, strict=True):
            value = evaluation.value.double().nan_to_num(nan=-torch.inf)
            order = value.argsort(descending=True, stable=True).tolist()
            queues.append([word for word in order if substitutes[word]])
        return queues


def _useful(word: str, others: Sequence[str]) -> list[str]:
    """Drop what is no substitute: the word itself, pieces of words, several words, stop words."""
    return list(
        dict.fromkeys(
            other
            for other in others
            if other and other != word and "##" not in other and " " not in other and other not in STOP_WORDS
        )
    )


@register_text_attack("synonyms")
@dataclass(frozen=True, kw_only=True)
class Synonyms(_Words):
    """Words, replaced by synonyms from a table; needs no language model.

    Attributes:
        words: How many words may change.
        table: JSON file {word: [substitutes]}, words in lower case; the bundled table where empty.
    """

    table: str = ""

    def substitutes(self, texts: Sequence[str], device: torch.device) -> list[Substitutes]:
        """Look words up without case and outer punctuation, and give their substitutes both."""
        table = _read_table(self.table)
        return [[self._of_word(word, table) for word in text.split(" ")] for text in texts]

    def _of_word(self, word: str, table: Mapping[str, Sequence[str]]) -> list[str]:
        core = word.strip(string.punctuation)
        if not core or word in STOP_WORDS:
            return []
        before, _, after = word.partition(core)
        as_written = str.capitalize if core[0].isupper() else str
        return _useful(word, [before + as_written(other) + after for other in table.get(core.lower(), ())])


@functools.lru_cache(maxsize=4)
def _read_table(path: str) -> Mapping[str, Sequence[str]]:
    if path:
        if not Path(path).is_file():
            raise DataError(f"there is no table of synonyms {path}.", "Give a JSON file {word: [substitutes]}.")
        text = Path(path).read_text(encoding="utf-8")
    else:
        text = resources.files("ironclip.attacks.text").joinpath("synonyms.json").read_text(encoding="utf-8")
    try:
        table = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}.", "Give a JSON file {word: [substitutes]}.") from None
    if not isinstance(table, dict) or not all(
        isinstance(others, list) and all(isinstance(other, str) for other in others) for others in table.values()
    ):
        raise DataError(f"{path} is no table of synonyms.", "Give a JSON file {word: [substitutes]}.")
    return table


class MaskedLanguageModel(Protocol):
    """What BERT-Attack asks of a language model; see `language_models.py` for one."""

    def pieces(self, word: str) -> list[int]:
        """Return the ids of a word's tokens."""

    def fill(self, sequences: Sequence[Sequence[int]], count: int) -> list[tuple[Tensor, Tensor]]:
        """Return the best `count` ids `[L + 2, K]` and their scores at each place of each sequence of L tokens.

        The first and the last place are those of the marks that the model puts around a text ([CLS], [SEP]).
        """

    def perplexity(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Return exp(mean cross-entropy) of each sequence, fed as it is."""

    def word(self, ids: Sequence[int]) -> str:
        """Write tokens as one word; empty where they are none."""


@register_text_attack("bert_attack")
@dataclass(frozen=True, kw_only=True)
class BertAttack(_Words):
    """Words, replaced by what a masked language model would write there (BERT-Attack).

    Attributes:
        language_model: Folder of a transformers masked language model, such as bert-base-uncased.
        words: How many words may change.
        candidates: Tokens considered at each place (K).
        threshold: Scores below it, as raw logits, end the list of tokens.
        max_length: Tokens of a text that the language model reads, with the marks around it.
        variant: "paper", or "code": the published code's place, one token too early.
    """

    language_model: str
    candidates: int = 10
    threshold: float = 0.3
    max_length: int = 30
    variant: Literal["paper", "code"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates < 1 or self.max_length < 3:
            raise ConfigError(
                f"the text attack has candidates: {self.candidates} and max_length: {self.max_length}.",
                "Give at least 1 candidate, and 3 tokens.",
            )

    def substitutes(self, texts: Sequence[str], device: torch.device) -> list[Substitutes]:
        """Ask the language model."""
        model = load_masked_language_model(self.language_model, str(device))
        return masked_substitutes(
            model,
            texts,
            candidates=self.candidates,
            threshold=self.threshold,
            max_length=self.max_length,
            offset=1 if self.variant == "paper" else 0,
        )


def masked_substitutes(
    model: MaskedLanguageModel,
    texts: Sequence[str],
    *,
    candidates: int = 10,
    threshold: float = 0.3,
    max_length: int = 30,
    offset: int = 1,
) -> list[Substitutes]:
    """Read a masked language model's substitutes for each word of unmasked texts.

    Args:
        model: The language model.
        texts: Words separated by single spaces.
        candidates: Tokens considered at each place.
        threshold: Scores below it end the list of tokens.
        max_length: Tokens of a text that are read, with two marks around them.
        offset: Marks before the first token.
    """
    words = [text.split(" ") for text in texts]
    pieces = [[model.pieces(word) for word in line] for line in words]
    sequences = [[piece for part in line for piece in part][: max_length - 2] for line in pieces]
    found = []
    for line, parts, (ids, scores) in zip(words, pieces, model.fill(sequences, candidates), strict=True):
        starts = [0, *itertools.accumulate(len(part) for part in parts)]
        substitutes: Substitutes = []
        for word, part, start in zip(line, parts, starts, strict=False):
            # A word is replaced only where the model has read the whole of it.
            inside = part and start + len(part) <= max_length - 2 and word not in STOP_WORDS
            places = slice(start + offset, start + offset + len(part))
            others = _of_places(model, ids[places], scores[places], threshold) if inside else []
            substitutes.append(_useful(word, others))
        found.append(substitutes)
    return found


def _of_places(model: MaskedLanguageModel, ids: Tensor, scores: Tensor, threshold: float) -> list[str]:
    """Turn the model's tokens at the places of one word into words; of several tokens the likeliest combinations."""
    if len(ids) == 1:
        kept = itertools.takewhile(
            lambda pair: pair[1] >= threshold, zip(ids[0].tolist(), scores[0].tolist(), strict=True)
        )
        return [model.word([token]) for token, _ in kept]
    # 12 places, 4 tokens each, 24 combinations: the published code's bounds on the product.
    combinations = [list(one) for one in itertools.islice(itertools.product(*ids[:12, :4].tolist()), 24)]
    order = sorted(zip(model.perplexity(combinations), range(len(combinations)), strict=True))
    return [model.word(combinations[index]) for _, index in order]
