from __future__ import annotations

import pytest

from ironclip.data.classes import check_class_names, class_groups, colliding_names, fill_templates, words_sha256
from ironclip.errors import ConfigError, DataError


def test_names_that_fit() -> None:
    check_class_names(["cat", "dog"], [0, 1, 1])
    check_class_names(["cat", "dog", "cow"], [0, 1])  # more names than labels: unseen classes among all names
    check_class_names(["cat"], [])


@pytest.mark.parametrize(
    ("names", "labels", "words"),
    [
        ([f"pet {n}" for n in range(36)], list(range(37)), "36 class names for 37 labels: no name for label 36"),
        (["cat"], [0, 3, 5, 3], "1 class names for 6 labels: no name for label 3, 5"),
        (["cat"], [0, -1, -1], r"2 labels are negative \(smallest -1\)"),
        (["cat", " ", ""], [0], "class names of labels 1, 2 are blank"),
    ],
)
def test_names_that_do_not_fit(names: list[str], labels: list[int], words: str) -> None:
    with pytest.raises(DataError, match=words):
        check_class_names(names, labels)


def test_names_that_read_alike_are_reported() -> None:
    names = ["Crane", "cat", "polar_bear", "crane ", "polar bear", "Polar-Bear", "dog"]
    before = list(names)
    assert colliding_names(names) == [("Crane", [0, 3]), ("polar_bear", [2, 4, 5])]
    assert names == before
    assert colliding_names(["cat", "dog"]) == []


def test_groups_join_identical_names_only() -> None:
    assert class_groups(["crane", "cat", "crane", "Crane", "cat", "crane"]) == [0, 1, 0, 3, 1, 0]


def test_templates_are_filled() -> None:
    templates = ["a photo of a {}.", "{}: the {}"]
    assert fill_templates("polar_bear", templates) == ["a photo of a polar_bear.", "polar_bear: the polar_bear"]
    assert templates == ["a photo of a {}.", "{}: the {}"]


@pytest.mark.parametrize(
    ("name", "templates", "words"),
    [
        ("cat", [], "no prompt template"),
        ("cat", ["a photo of a {}", "a photo"], r'template "a photo" has no \{\}'),
        ("cat", ["a {c} photo"], r"has no \{\}"),
        ("cat", ["a {} in a {place}"], "still holds a brace"),
        ("cat", ["a {{}} photo"], "still holds a brace"),
        ("c{a}t", ["a {}"], "still holds a brace"),
    ],
)
def test_templates_that_cannot_be_filled(name: str, templates: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        fill_templates(name, templates)


def test_the_hash_of_a_list_depends_on_its_order() -> None:
    # printf 'cat\ndog' | sha256sum
    assert words_sha256(["cat", "dog"]) == "3a450eb155d6a4c6a5bd642b1dca64ddfc6c6b8823ca468a4797682265d07504"
    assert words_sha256(["dog", "cat"]) != words_sha256(["cat", "dog"])
