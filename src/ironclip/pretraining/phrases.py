"""The words that a new text tower learns: a vocabulary, class names, sentences; and what it must never be taught.

Everything is lower case: CLIP's tokenizer and the sentence encoder both read it so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ironclip.data.bundled import digits, shapes
from ironclip.data.fingerprints import fingerprint
from ironclip.errors import DataError

_GENERAL = (
    "{}",
    "a {}",
    "the {}",
    "an image of {}.",
    "a photo of a {}.",
    "a photo of the {}.",
    "a blurry photo of a {}.",
    "a low resolution photo of a {}.",
    "a close-up photo of a {}.",
    "a good photo of a small {}.",
    "a picture showing a {}.",
    "a drawing of a {}.",
    "this is a {}, seen from afar.",
)

# A tower that was never taught "a photo of the digit" reads little else in it: in a trial the ten names by themselves
# had a mean cosine of .54, in that template .95, and no image tower could tell them apart.
TEMPLATES = tuple(dict.fromkeys([*_GENERAL, *digits.TEMPLATES, *shapes.TEMPLATES]))
"""Prompts that a phrase is taught in; all of them mean the phrase itself."""

# Adverbs are left out: nobody photographs them.
_WORDNET_PARTS = ("noun", "adj", "verb")
_LEMMA = re.compile(r"[a-z][a-z .'-]*")
_MOST_WORDS = 4
_MOST_GLOSS_WORDS = 20


@dataclass(frozen=True)
class Phrases:
    """What a text tower is taught, each phrase once, in lower case.

    Attributes:
        class_names: Names and synonyms of classes; taught often, in templates.
        words: The vocabulary around them; taught in templates.
        sentences: Captions and definitions; taught as they stand.
    """

    class_names: tuple[str, ...]
    words: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.class_names) + len(self.words) + len(self.sentences)

    @property
    def all(self) -> tuple[str, ...]:
        """All phrases in the order of rows: class names, words, sentences."""
        return self.class_names + self.words + self.sentences

    @property
    def sha256(self) -> str:
        """Hash of phrases and kinds, hex."""
        parts = (self.class_names, self.words, self.sentences)
        return fingerprint([f"{kind}\t{phrase}" for kind, part in enumerate(parts) for phrase in part])


def plain(phrase: str) -> str:
    """Return a phrase as it is taught: lower case, spaces for underscores, one space between words."""
    return " ".join(phrase.lower().replace("_", " ").split())


def gather_phrases(
    class_names: Iterable[str],
    words: Iterable[str] = (),
    sentences: Iterable[str] = (),
    *,
    without: Collection[str] = (),
) -> Phrases:
    """Put phrases into their form, each once: a word that is a class name is one, and taught as one.

    Args:
        class_names: Names and synonyms of classes.
        words: A vocabulary, such as `read_wordnet` gives.
        sentences: Captions, and such as `read_glosses` gives.
        without: Names that must not be taught; what reads like one of them is dropped (case, underscores, hyphens and
            spaces apart; a plural or a longer phrase that mentions it stays).

    Raises:
        DataError: No class name is left.
    """
    seen = {alike(name) for name in without}

    def take(phrases: Iterable[str]) -> tuple[str, ...]:
        taken = []
        for phrase in map(plain, phrases):
            if phrase and alike(phrase) not in seen:
                seen.add(alike(phrase))
                taken.append(phrase)
        return tuple(taken)

    phrases = Phrases(take(class_names), take(words), take(sentences))
    if not phrases.class_names:
        raise DataError("there is no class name to teach.", "Give the names of the classes that images will have.")
    return phrases


def read_wordnet(folder: Path) -> list[str]:
    """Read the nouns, adjectives and verbs of a WordNet 3 database, without those that have digits or over four words.

    Args:
        folder: The folder with `index.noun`, `index.adj` and `index.verb`.

    Raises:
        DataError: A file is missing, or is not an index of WordNet.
    """
    lemmas: dict[str, None] = {}
    for part in _WORDNET_PARTS:
        path = folder / f"index.{part}"
        if not path.is_file():
            raise DataError(f"there is no {path}.", "Give the folder dict of WordNet 3, which holds index.noun.")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if line.startswith("  "):  # the licence
                continue
            lemma, _, rest = line.partition(" ")
            if rest[:2] not in ("n ", "a ", "v "):
                raise DataError(f"{path} is no index of WordNet: line {number}.", "Fetch the file anew.")
            phrase = plain(lemma)
            if _LEMMA.fullmatch(phrase) and len(phrase.split()) <= _MOST_WORDS:
                lemmas.setdefault(phrase)
    return list(lemmas)


def read_glosses(folder: Path) -> list[str]:
    """Read what a WordNet 3 database says of its nouns: definitions and example sentences, as they stand.

    They show words in use, so that a tower has an idea of words that it was never taught alone. A definition does not
    hold the word that it defines. Those of over twenty words are left out: they would cost more than all others.

    Args:
        folder: The folder with `data.noun`.

    Raises:
        DataError: The file is missing, or is no such file.
    """
    path = folder / "data.noun"
    if not path.is_file():
        raise DataError(f"there is no {path}.", "Give the folder dict of WordNet 3, which holds data.noun.")
    glosses: dict[str, None] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("  "):  # the licence
            continue
        _, found, gloss = line.partition(" | ")
        if not found:
            raise DataError(f"{path} is no file of WordNet: line {number}.", "Fetch the file anew.")
        definition, *examples = re.split(r'; (?=")', gloss)
        for text in (definition, *examples):
            sentence = plain(text.strip('" '))
            if 1 < len(sentence.split()) <= _MOST_GLOSS_WORDS:
                glosses.setdefault(sentence)
    return list(glosses)


def read_class_words(folder: Path) -> dict[int, list[str]]:
    """Read how the classes of a data set are called, by label: prompt name, name, synonyms, from its `classes.json`.

    Args:
        folder: The data set.

    Raises:
        DataError: There is no such file, or it is not a list of classes.
    """
    return {entry["label"]: _words_of(entry) for entry in _read_classes(folder)}


def read_unseen(data_root: Path) -> dict[str, dict[int, list[str]]]:
    """Read the classes that pre-training must never meet, from `unseen_classes.json` beside the data sets.

    Returns:
        For each data set that has such classes, their labels with all that they are called.

    Raises:
        DataError: The file is missing or names a class that the data set does not have.
    """
    path = data_root / "unseen_classes.json"
    unseen = {}
    for name, entries in _read_json(path).items():
        if not isinstance(entries, list):
            continue  # notes on how they were drawn
        words = read_class_words(data_root / name)
        absent = [entry["label"] for entry in entries if entry["label"] not in words]
        if absent:
            raise DataError(f"{path} names label {absent[0]} of {name}, which has none.", "Fetch both files anew.")
        unseen[name] = {
            entry["label"]: list(dict.fromkeys([entry["name"], *words[entry["label"]]])) for entry in entries
        }
    return unseen


def alike(phrase: str) -> str:
    """Return what two spellings of one phrase share: case, underscores, hyphens and spaces apart."""
    return " ".join(phrase.casefold().replace("_", " ").replace("-", " ").split())


def _words_of(entry: dict[str, Any]) -> list[str]:
    words: Sequence[str] = [entry.get("prompt_name", entry["name"]), entry["name"], *entry.get("synonyms", ())]
    return list(dict.fromkeys(words))


def _read_classes(folder: Path) -> list[dict[str, Any]]:
    path = folder / "classes.json"
    content = _read_json(path)
    if not isinstance(content, list) or not all(
        isinstance(entry, dict) and {"label", "name"} <= entry.keys() for entry in content
    ):
        raise DataError(f"{path} is not a list of classes.", 'Write {"label": 0, "name": "cat"} for each class.')
    return content


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise DataError(f"there is no {path}.", "Give the folder of the data sets, or the data set's own.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}.", "Fetch the file anew.") from None
