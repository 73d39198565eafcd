"""The items of the language models can fail: each is shown something that is wrong."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from acceptance.claims import CannotRunError, Context
from acceptance.vlm_metrics import largest_gap, our_scores

from acceptance import named_tests, vlm, vlm_llava, vlm_metrics, vlm_model, vlm_resume
from ironclip.data.prompted import PromptedImage

WORDS = [["a", "dog", "runs"], ["a", "cat", "sits"], ["two", "men", "play"]]


def test_items_and_claims_have_names_of_their_own():
    assert len({item.name for item in vlm.ITEMS}) == len(vlm.ITEMS)
    for item in vlm.ITEMS:
        assert item.claims
        assert len({claim.name for claim in item.claims}) == len(item.claims)


@pytest.mark.parametrize("item", vlm.ITEMS, ids=lambda item: item.name)
def test_modules_of_an_item_exist(item):
    assert [module for module in item.modules if find_spec(module) is None] == []


def test_another_scorer_is_told_from_ours():
    ours = our_scores(WORDS, [[words] for words in WORDS])
    assert largest_gap(ours, list(ours)) == 0
    assert largest_gap(ours, [*ours[:2], ours[2] + 2e-6]) > 1e-6


def test_without_the_published_scorer_nothing_is_claimed(monkeypatch):
    monkeypatch.setattr(vlm_metrics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CannotRunError, match="pycocoevalcap is not installed"):
        vlm_metrics.their_scores(WORDS, [[words] for words in WORDS])


def test_a_failing_test_fails_its_claim(monkeypatch, tmp_path):
    broken = named_tests.Case("tests/x.py", "test_x", "", "failed")
    monkeypatch.setattr(named_tests, "run", lambda nodes: [broken])
    found = {one.claim: one.value for one in vlm_llava.llava.measure(Context(tmp_path, short=True))}
    assert set(found.values()) == {1}
    monkeypatch.setattr(named_tests, "run", lambda nodes: [])
    assert all(one.value != one.value for one in vlm_llava.llava.measure(Context(tmp_path, short=True)))


def test_no_image_stays_in_its_place_when_images_are_permuted():
    images = [PromptedImage(f"key {at}", torch.zeros(3, 1, 1), "", ("a",)) for at in range(20)]
    places = vlm_model.other_places(images)
    assert sorted(places) == list(range(20))
    assert all(at != place for at, place in enumerate(places))


def test_a_run_that_ends_by_itself_is_no_killed_one(tmp_path):
    with pytest.raises(RuntimeError, match="before it stored a chunk"):
        vlm_resume.kill_after_a_chunk(["true"], tmp_path / "run")
