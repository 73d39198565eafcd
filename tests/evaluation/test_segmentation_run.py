"""Masks under attack as stored rows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ironclip.attacks.apgd import APGD
from ironclip.attacks.threat_model import ThreatModel
from ironclip.data.masks import shapes_masks
from ironclip.errors import ConfigError
from ironclip.evaluation import task_run
from ironclip.evaluation.iou import confusion, mean_iou
from ironclip.evaluation.segmentation import Segmenter
from ironclip.evaluation.segmentation_run import TEMPLATES, SegmentationRequest, evaluate_masks, open_masks
from ironclip.evaluation.task_figures import mask_of, mask_png
from ironclip.models.sources import load_model, save_model


@pytest.fixture(scope="module")
def source(tiny_clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    save_model(tiny_clip(), folder)
    return f"local-dir:{folder}"


@pytest.fixture
def request_for(source, tmp_path):
    def make(**changes):
        settings = {
            "model": source,
            "data": "shapes",
            "threat": ThreatModel(eps="8/255"),
            "out": tmp_path / "run",
            "limit": 5,
            "tile": 16,
            "save": "all",
            "attack": APGD(steps=4),
        }
        return SegmentationRequest(**settings | changes)

    return make


def test_stored_masks_are_the_models_and_figures_their_miou(request_for, source):
    store = evaluate_masks(request_for())
    data, rows = shapes_masks(), store.rows()
    truth = {key: data[data.keys.index(key)].mask.numpy() for key in (row["image_id"] for row in rows)}
    segmenter = Segmenter(load_model(source), data.class_names, TEMPLATES)
    told = json.loads((store.path / "figures.json").read_text())["figures"][0]
    for side, when in enumerate(("clean", "attacked")):
        summed = np.zeros((65, 65), dtype=np.int64)
        for row in rows:
            assert (mask_of(row["truth"]) == truth[row["image_id"]]).all()
            pixels = torch.as_tensor(store.read_images([row["image_id"]])[row["image_id"]][side])
            with torch.no_grad():
                said = segmenter.logits(pixels[None]).argmax(dim=1)[0].numpy()
            assert (mask_of(row[f"said_{when}"]) == said).mean() > 0.999
            assert row["loss_attacked"] >= row["loss_clean"]
            summed += confusion(truth[row["image_id"]], mask_of(row[f"said_{when}"]), 65)
        assert told[when]["estimate"] == pytest.approx(mean_iou(summed))
        assert told[when]["low"] <= told[when]["estimate"] <= told[when]["high"]


def test_chunks_and_tiles_do_not_matter(request_for, tmp_path, monkeypatch):
    whole = evaluate_masks(request_for()).rows()
    monkeypatch.setattr(task_run, "CHUNK", 2)
    assert evaluate_masks(request_for(out=tmp_path / "parts", tile=32)).rows() == whole


def test_masks_go_round():
    mask = np.random.default_rng(0).integers(0, 256, (7, 5)).astype(np.uint8)
    assert (mask_of(mask_png(mask)) == mask).all()


def test_an_unknown_source_is_refused():
    with pytest.raises(ConfigError, match=r'"vocc:x" is no source of masks. Did you mean "voc"'):
        open_masks("vocc:x", 32)
