"""The items of hardening can fail: each is shown something that is wrong."""

from __future__ import annotations

import json
import subprocess

import pytest
from acceptance.claims import CannotRunError, Context

from acceptance import named_tests, scale_hardening


def figures(item, tmp_path, *, short=False):
    return {figure.claim: figure for figure in item.measure(Context(tmp_path, short=short))}


def case(function: str, parameters: str, verdict: str = "passed") -> named_tests.Case:
    return named_tests.Case("tests/cli/test_mistakes.py", function, parameters, verdict)


def test_a_mistake_that_is_not_refused_is_counted(tmp_path, monkeypatch):
    cases = [case("test_mistake", str(number)) for number in range(100)]
    hundred = "test_there_are_a_hundred_and_their_messages_differ"
    monkeypatch.setattr(named_tests, "run", lambda nodes: [*cases, case(hundred, "")])
    found = figures(scale_hardening.mistakes, tmp_path)
    assert [found[claim].value for claim in ("refused", "wrong", "distinct")] == [100, 0, 0]
    cases[7] = case("test_mistake", "7", "failed")
    cases[8] = case("test_mistake", "8", "skipped")
    monkeypatch.setattr(named_tests, "run", lambda nodes: cases)
    found = figures(scale_hardening.mistakes, tmp_path)
    assert [found[claim].value for claim in ("refused", "wrong")] == [98, 2]
    assert found["distinct"].value != found["distinct"].value  # NaN: the test that compares them did not run
    with pytest.raises(CannotRunError, match="tests of CI"):
        figures(scale_hardening.hostile, tmp_path, short=True)


def test_a_crash_and_a_parser_that_says_nothing_are_counted(tmp_path, monkeypatch):
    line = {
        "parser": "recipe",
        "inputs": 5,
        "kept": 1,
        "lines": 10,
        "reached": 0.5,
        "missing": ["a.py:1"],
        "crash": "X",
    }

    def run(command, **_):
        return subprocess.CompletedProcess(command, 1, json.dumps(line) + "\n", "Segmentation fault")

    monkeypatch.setattr(subprocess, "run", run)
    found = figures(scale_hardening.fuzzed, tmp_path)
    assert found["crashes"].value == 2
    assert "Segmentation fault" in found["crashes"].shown
    assert found["recipe"].value == 0.5
    assert "shard" not in found
    assert found["minutes"].value < 1
    assert found["corpus"].value >= 20


@pytest.mark.slow
def test_the_short_form_fuzzes_for_seconds(tmp_path):
    found = figures(scale_hardening.fuzzed, tmp_path, short=True)
    assert found["minutes"].value is None
    assert found["crashes"].value == 0
    assert min(found["recipe"].value, found["shard"].value) >= 0.9
