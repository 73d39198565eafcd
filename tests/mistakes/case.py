"""What a catalogued mistake is, and where it is made."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Scene:
    """An empty folder, with what a user has beside it.

    Attributes:
        here: Where the command runs.
        places: Folders by the word that stands for them in commands and in messages.
        recipe: Write a recipe of two steps with the given keys put over it.
        suite: Write a suite over three colours with the given class names.
        monkeypatch: For machines that are full, or closed.
        afterwards: What must be undone.
    """

    here: Path
    places: Mapping[str, Path]
    recipe: Callable[..., Path]
    suite: Callable[[list[str]], Path]
    monkeypatch: pytest.MonkeyPatch
    afterwards: ExitStack

    def copy(self, place: str, name: str) -> Path:
        """Copy one of the places here, to be spoiled."""
        return shutil.copytree(self.places[place], self.here / name)

    def neutral(self, text: str) -> str:
        """Put words in place of folders that are others in every run of the tests."""
        folders = {**{word: str(path) for word, path in self.places.items()}, "HERE": str(self.here)}
        for word, folder in sorted(folders.items(), key=lambda one: -len(one[1])):
            text = text.replace(folder, word)
        return re.sub(r"\.\d+\.tmp", ".PID.tmp", text)


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A command that cannot work, and what is said to whoever typed it.

    Attributes:
        title: What went wrong, unique.
        words: The command; MODEL, DATA, RUN, … stand for the scene's folders.
        names: The value given, which the message has to name.
        code: Exit code.
        files: Written before, by name.
        recipe: Keys of `recipe.yaml`, which is written before; None: it is not.
        classes: Class names of `colours.yaml`, a suite that is written before.
        before: Anything else that has happened.
        leaves: What lies here afterwards and did not before; a request that is refused leaves nothing.
    """

    title: str
    words: str
    names: str
    code: int = 2
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    recipe: Mapping[str, Any] | None = None
    classes: tuple[str, ...] = ("red", "green", "blue")
    before: Callable[[Scene], object] | None = None
    leaves: tuple[str, ...] = ()

    def prepare(self, scene: Scene) -> list[str]:
        """Make the mistake's surroundings and return the words of its command."""
        scene.suite(list(self.classes))
        if self.recipe is not None:
            scene.recipe(**self.recipe)
        for name, content in self.files.items():
            path = scene.here / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        if self.before is not None:
            self.before(scene)
        words = []
        for word in self.words.split(" "):
            for place, path in scene.places.items():
                word = word.replace(place, str(path))
            words.append(word.replace("␣", " "))
        return words
