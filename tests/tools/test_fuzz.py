"""The parsers meet what nobody would write: the corpus, made-up structures, and damage of all kinds."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ironclip import plain_yaml
from ironclip.errors import ConfigError
from made_up_shards import encoded, tar_bytes
from tools import fuzz

FAST = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
WORDS = """title model data threat attack text_attack optimisation validation sweep select seed name eps norm steps
lr method epochs train templates class_names hold_out betas warmup architecture images sources tower x"""
KEYS = st.sampled_from(WORDS.split())
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.binary(max_size=4),
    st.sampled_from(["tecoa", "leaf", "pgd_m", "4/255", "1/0", "1e999999", "{}", "a {}", "linf", "l2", "wds:x"]),
)
CONTENTS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS | st.integers(), inner, max_size=5)),
)
NAMES = st.one_of(
    st.from_regex(r"[a-z0-9/.]{1,12}\.(png|jpg|cls|json|txt|tar|)", fullmatch=True), st.text(min_size=1, max_size=20)
)
MEMBERS = st.dictionaries(
    NAMES.filter(lambda name: "\0" not in name and not any(0xD800 <= ord(sign) < 0xE000 for sign in name)),
    st.one_of(
        st.binary(max_size=40), st.just(encoded(1, 4)), st.sampled_from([b"3", b'{"label": 1}', b"[[[", b"a cat"])
    ),
    max_size=5,
)


def survives(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        fuzz.PARSERS[name].parse(content, Path(folder))


@pytest.mark.parametrize("name", fuzz.PARSERS)
def test_the_corpus_reaches_the_parser_and_breaks_nothing(name):
    parser = fuzz.PARSERS[name]
    coverage = fuzz.Coverage(set().union(*map(fuzz.body_lines, parser.modules)))
    inputs = sorted((fuzz.CORPUS / name).glob("*"))
    assert len(inputs) >= 10
    assert [(path.name, crash) for path in inputs if (crash := fuzz.attempt(parser, path.read_bytes(), coverage))] == []
    assert coverage.share >= 0.9


@FAST
@given(CONTENTS)
def test_any_structure_is_a_recipe_or_refused(content):
    survives("recipe", yaml.safe_dump(content, allow_unicode=True).encode())


@FAST
@given(st.binary(max_size=80), st.text(max_size=20))
def test_any_bytes_are_a_recipe_or_refused(content, change):
    survives("recipe", content + b"\0" + change.encode(errors="replace"))


@FAST
@given(MEMBERS, st.sampled_from(b"0123456789"), st.integers(0, 3000), st.binary(max_size=3))
def test_any_members_are_a_shard_or_refused(members, layout, place, damage):
    content = bytearray(tar_bytes(members))
    survives("shard", bytes([layout]) + bytes(content))
    content[place : place + len(damage)] = damage
    survives("shard", bytes([layout]) + bytes(content))


@FAST
@given(CONTENTS)
def test_plain_values_come_back_as_they_were_written(content):
    def alike(one: object, other: object) -> bool:
        if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
            return math.isnan(other)
        if isinstance(one, list) and isinstance(other, list):
            return len(one) == len(other) and all(map(alike, one, other))
        if isinstance(one, dict) and isinstance(other, dict):
            return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
        return one == other

    assert alike(plain_yaml.read_yaml(yaml.safe_dump(content), "x"), content)


def test_aliases_are_read():
    assert plain_yaml.read_yaml("a: &a [1, 2]\nb: *a\n", "x") == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize("text", ["a: &a {x: 1}\nb: {<<: *a}", "<<: {x: 1}"])
def test_merge_keys_are_not(text):
    with pytest.raises(ConfigError, match=r"x\.yaml is not YAML near line \d \(merge keys \(<<\) are not read\)"):
        plain_yaml.read_yaml(text, "x.yaml")


# The tool


def picky(content: bytes, folder: Path) -> None:
    if content[:1] == b"\xff":
        raise KeyError("planted")


def slow(content: bytes, folder: Path) -> None:
    while True:
        pass


def test_a_crash_is_found_and_its_input_kept(tmp_path):
    parser = fuzz.Parser(picky, (plain_yaml,), (b"\xff",))
    found = fuzz.fuzz(parser, tmp_path, seconds=20, seed=0)
    assert found.crash is not None
    assert "KeyError: 'planted'" in found.crash
    (kept,) = tmp_path.glob("crash-*")
    assert kept.read_bytes()[:1] == b"\xff"
    again = fuzz.fuzz(parser, tmp_path, seconds=0, seed=1)
    assert again.inputs == 1
    assert again.crash is not None


def test_a_parser_that_hangs_is_stopped(monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    assert fuzz.attempt(fuzz.Parser(slow, (), ()), b"", fuzz.Coverage(set())) == "TimeoutError: longer than 1 s"


def test_what_reaches_new_lines_joins_the_corpus(tmp_path):
    found = fuzz.fuzz(fuzz.PARSERS["recipe"], tmp_path, seconds=1.5, seed=3)
    assert found.crash is None
    assert 0 < len(list(tmp_path.iterdir())) == found.kept < found.inputs
    again = fuzz.fuzz(fuzz.PARSERS["recipe"], tmp_path, seconds=0, seed=3)
    assert again.reached == found.reached > 0.2
    assert len(again.missing) == round(again.lines * (1 - again.reached))


def test_lines_of_functions_alone_count():
    wanted = fuzz.body_lines(plain_yaml)
    source = Path(plain_yaml.__file__).read_text().splitlines()
    texts = [source[line - 1].strip() for _, line in wanted]
    assert "seen, waiting = 0, [(content, 0)]" in texts
    assert not [text for text in texts if text.startswith(("import", "from", "def ", "class ", "_MERGE"))]
