"""Class names and the prompts made of them: fit, collisions, templates. Nothing here changes its input.

Sources: evaluation plan 1.4 (ties of duplicate names); methods plan 6, D23 (equal prompts of two classes), D24 (names
refined in place), D33 (templates that are never filled).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ironclip.data.fingerprints import fingerprint
from ironclip.errors import ConfigError, DataError


def check_class_names(class_names: Sequence[str], labels: Sequence[int]) -> None:
    """Check that every label has a name.

    Args:
        class_names: Words for labels 0, 1, ...; more names than labels is right (unseen classes among all names).
        labels: Labels of a data set.

    Raises:
        DataError: A label has no name or is negative, or a name is blank.
    """
    blank = [index for index, name in enumerate(class_names) if not name.strip()]
    if blank:
        raise DataError(f"the class names of labels {_some(blank)} are blank.", "Give each class a name.")
    if not labels:
        return
    if min(labels) < 0:
        raise DataError(
            f"{sum(label < 0 for label in labels)} labels are negative (smallest {min(labels)}).",
            "Labels count from 0; leave out the samples that have none.",
        )
    if max(labels) >= len(class_names):
        missing = sorted({label for label in labels if label >= len(class_names)})
        raise DataError(
            f"{len(class_names)} class names for {max(labels) + 1} labels: no name for label {_some(missing)}.",
            "Add the missing names in label order, or check that the names belong to this data set.",
        )


def colliding_names(class_names: Sequence[str]) -> list[tuple[str, list[int]]]:
    """List the classes whose prompts read alike: case, underscores, hyphens and spaces apart.

    Returns:
        For each such group, in order of first label, the first name as it is written and all its labels; the later
        ones of a group can hardly ever be predicted.
    """
    alike: dict[str, list[int]] = {}
    for index, name in enumerate(class_names):
        alike.setdefault(" ".join(name.casefold().replace("_", " ").replace("-", " ").split()), []).append(index)
    return [(class_names[labels[0]], labels) for labels in alike.values() if len(labels) > 1]


def class_groups(class_names: Sequence[str]) -> list[int]:
    """Map each class to the lowest label with the identical name, where its ties are resolved."""
    first: dict[str, int] = {}
    return [first.setdefault(name, index) for index, name in enumerate(class_names)]


def fill_templates(class_name: str, templates: Sequence[str]) -> list[str]:
    """Put a class name into each template ("a photo of a {}.").

    Raises:
        ConfigError: There is no template, one has no `{}`, or a brace is left in a prompt.
    """
    if not templates:
        raise ConfigError("there is no prompt template.", 'Give at least one, such as "a photo of a {}.".')
    prompts = []
    for template in templates:
        if "{}" not in template:
            raise ConfigError(
                f'the template "{template}" has no {{}}: all classes would get the same prompt.',
                'Write {} where the class name belongs, such as "a photo of a {}.".',
            )
        prompt = template.replace("{}", class_name)
        if "{" in prompt or "}" in prompt:
            raise ConfigError(
                f'the prompt "{prompt}" still holds a brace (template "{template}", class name "{class_name}").',
                "Write {} without anything between the braces, and class names without braces.",
            )
        prompts.append(prompt)
    return prompts


def words_sha256(words: Sequence[str]) -> str:
    """Return the sha256 hex of a list of class names or templates, joined by newlines: its identity in records."""
    return fingerprint(words)


def read_class_names(folder: Path) -> list[str] | None:
    """Read `classes.txt` (one name a line, in label order) of a folder; None where there is none.

    Raises:
        DataError: It is not UTF-8 text.
    """
    text = _read_text(folder / "classes.txt")
    return None if text is None else [line.strip() for line in text.rstrip().splitlines()]


def read_templates(folder: Path) -> list[str] | None:
    """Read `templates.json` (a list of texts) of a folder; None where there is none.

    Raises:
        DataError: It is not a list of texts.
    """
    path = folder / "templates.json"
    text = _read_text(path)
    if text is None:
        return None
    try:
        templates = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}.", 'Write a list such as ["a photo of a {}."].') from None
    if not isinstance(templates, list) or not all(isinstance(template, str) for template in templates):
        raise DataError(f"{path} is not a list of texts.", 'Write a list such as ["a photo of a {}."].')
    return templates


def _read_text(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}.", "Save it as UTF-8.") from None


def _some(labels: Sequence[int]) -> str:
    return ", ".join(map(str, labels[:5])) + (", …" if len(labels) > 5 else "")
