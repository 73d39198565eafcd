"""Retrieval under attack on a random tiny CLIP: rows are what plain loops over cosines give."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from ironclip.attacks.apgd import APGD
from ironclip.attacks.retrieval import MissTexts, Vanish
from ironclip.attacks.text.characters import Charmer
from ironclip.attacks.text.objectives import MissImage
from ironclip.attacks.threat_model import ThreatModel
from ironclip.data.sources import open_dataset
from ironclip.errors import ConfigError, DataError
from ironclip.evaluation import task_run
from ironclip.evaluation.retrieval import hits_at_k, match_ranks
from ironclip.evaluation.retrieval_run import RetrievalRequest, evaluate_retrieval
from ironclip.models.sources import load_model, save_model

LINF = ThreatModel(eps="8/255")
DATA = "bundled:shapes?split=scenes_test"
APGD_4 = APGD(steps=4)
ONE_EDIT = Charmer(edits=1, places=1)


@pytest.fixture(scope="module")
def source(tiny_clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    save_model(tiny_clip(), folder)
    return f"local-dir:{folder}"


@pytest.fixture
def request_for(source, tmp_path):
    def make(attacked, **changes):
        settings = {
            "model": source,
            "data": DATA,
            "threat": LINF,
            "out": tmp_path / attacked,
            "limit": 20,
            "tile": 16,
            "save": "all",
            "attacked": attacked,
            "attack": None if attacked == "text-query" else APGD_4,
            "text_attack": ONE_EDIT if attacked in ("text-query", "both") else None,
        }
        return RetrievalRequest(**settings | changes)

    return make


def rank_by_hand(similarity, own):
    """Count by a loop what stands at or before the best match."""
    best = max(value for value, mine in zip(similarity, own, strict=True) if mine)
    return 1 + sum(value >= best for value, mine in zip(similarity, own, strict=True) if not mine)


def test_ranks_are_counted_and_agree_with_hits():
    random = np.random.default_rng(0)
    for _ in range(20):
        similarity = random.integers(0, 5, (6, 9)) / 5  # with many ties
        queries, targets = random.integers(0, 3, 6), np.array([0, 1, 2, *random.integers(0, 3, 6)])
        ranks = match_ranks(similarity, queries, targets)
        assert ranks.tolist() == [
            rank_by_hand(row, targets == query) for row, query in zip(similarity, queries, strict=True)
        ]
        for k in (1, 3, 9):
            assert ((ranks <= k) == hits_at_k(similarity, queries, targets, k)).all()


def test_an_image_that_misses_its_texts_stands_behind_as_many_others_as_are_asked_for(tiny_clip, pixels):
    model = tiny_clip()
    with torch.no_grad():
        texts = model.text_features([f"text {number}" for number in range(6)])
        similarity = model.image_features(pixels) @ texts.T
        own = torch.zeros(4, 6, dtype=torch.bool)
        own[torch.arange(4), torch.arange(4)] = own[0, 5] = True
        for depth in (1, 3):
            found = MissTexts(model, texts, own, depth).evaluate(pixels)
            for row in range(4):
                rank = rank_by_hand(similarity[row].tolist(), own[row].tolist())
                assert found.broken[row] == (rank > depth)
            lead = similarity.masked_fill(own, -9).amax(1) - similarity.masked_fill(~own, -9).amax(1)
            torch.testing.assert_close(found.value, lead)


def test_an_image_vanishes_when_no_text_of_its_own_finds_it(tiny_clip, pixels):
    model = tiny_clip()
    with torch.no_grad():
        texts = model.text_features(["a", "b", "c"])
        own = torch.tensor([[True, True, False]]).expand(4, 3)
        similarity = model.image_features(pixels) @ texts.T
        for shift, broken in ((1e-3, True), (-1e-3, False)):
            deepest = similarity[0] + shift
            found = Vanish(model, texts, own[:1], deepest, deepest).evaluate(pixels[:1])
            assert found.broken.tolist() == [broken]
            assert found.value.item() == pytest.approx(shift, abs=1e-6)
        one_left = similarity[0] + torch.tensor([1e-3, -1e-3, 1.0])
        assert not Vanish(model, texts, own[:1], one_left, one_left).evaluate(pixels[:1]).broken.item()


def test_a_text_misses_its_image_when_others_are_nearer(tiny_clip, pixels):
    model, words = tiny_clip(), ["a red circle", "a blue star"]
    with torch.no_grad():
        images = model.image_features(pixels)
        similarity = model.text_features(words) @ images.T
        found = MissImage(model, images, torch.tensor([2, 1]), depth=2).evaluate(words)
    for row, own in enumerate((2, 1)):
        rank = rank_by_hand(similarity[row].tolist(), [place == own for place in range(4)])
        assert found.broken[row].item() == (rank > 2)


@pytest.mark.parametrize("attacked", ["image-query", "gallery-image", "text-query", "both"])
def test_rows_are_what_the_stored_images_and_texts_give(request_for, source, attacked):
    store = evaluate_retrieval(request_for(attacked))
    rows, model = store.rows(), load_model(source)
    data = open_dataset(DATA)
    keys = [row["image_id"] for row in rows]
    samples = {key: data[data.keys.index(key)] for key in keys}
    with torch.no_grad():
        images = model.image_features(torch.stack([samples[key].pixels for key in keys]))
        texts = model.text_features([samples[key].captions[0] for key in keys])
        for at, row in enumerate(rows):
            adv = store.read_images([keys[at]])[keys[at]][1] if attacked != "text-query" else samples[keys[at]].pixels
            adv = torch.as_tensor(adv)
            assert LINF.contains(adv[None], samples[keys[at]].pixels[None]).all()
            feature = model.image_features(adv[None])[0]
            own = [key == keys[at] for key in keys]
            if attacked == "image-query":
                clean, after = images[at] @ texts.T, feature @ texts.T
            else:
                query = model.text_features([row["query_attacked"]])[0]
                gallery = images.clone()
                gallery[at] = feature
                clean, after = texts[at] @ images.T, query @ gallery.T
                assert (row["query"] == row["query_attacked"]) or attacked in ("text-query", "both")
            assert row["rank_clean"] == rank_by_hand(clean.tolist(), own)
            assert row["rank_attacked"] == rank_by_hand(after.tolist(), own)
    assert sum(row["rank_attacked"] for row in rows) > sum(row["rank_clean"] for row in rows)
    figures = {one["name"]: one for one in json.loads((store.path / "figures.json").read_text())["figures"]}
    name = "image to text R@5" if attacked == "image-query" else "text to image R@5"
    assert figures[name]["attacked"]["estimate"] == pytest.approx(np.mean([row["rank_attacked"] <= 5 for row in rows]))
    assert math.isclose(
        figures[name]["change"]["estimate"],
        figures[name]["attacked"]["estimate"] - figures[name]["clean"]["estimate"],
        abs_tol=1e-12,
    )


def test_chunks_and_tiles_do_not_matter(request_for, tmp_path, monkeypatch):
    whole = evaluate_retrieval(request_for("both")).rows()
    monkeypatch.setattr(task_run, "CHUNK", 7)
    assert evaluate_retrieval(request_for("both", out=tmp_path / "parts", tile=32)).rows() == whole


def test_what_does_not_fit_is_refused(request_for):
    with pytest.raises(ConfigError, match='"both" needs an attack on images and one on texts'):
        request_for("both", text_attack=None)
    with pytest.raises(ConfigError, match='"text-query" needs an attack on texts, and no other'):
        request_for("text-query", attack=APGD_4)
    with pytest.raises(DataError, match="Give 11 images or more"):
        evaluate_retrieval(request_for("image-query", limit=10))
