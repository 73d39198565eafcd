"""The curve over the weights between an original and a robust model, on models and images of a few thousand numbers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import yaml

from ironclip.attacks.base import ATTACKS
from ironclip.attacks.threat_model import ThreatModel
from ironclip.data.classes import words_sha256
from ironclip.errors import ConfigError, ValueRangeError
from ironclip.evaluation.evaluate import EvaluationRequest, evaluate_suite
from ironclip.evaluation.weight_curve import weight_curve
from ironclip.models.sources import save_model
from ironclip.report.page import build_report
from made_up_shards import labelled, write_shard

NAMES = ["cat", "dog", "bird"]


@pytest.fixture
def request_of(tiny_clip, tmp_path):
    """Ask for FGSM on 18 images, of a run whose tower was moved at random."""
    original, robust = tiny_clip(), tiny_clip()
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in robust.visual.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=random)
    sha256 = save_model(original, tmp_path / "original")
    save_model(robust, tmp_path / "run" / "model")
    record = {"model": {"source": f"local-dir:{tmp_path}/original", "sha256": sha256}, "trains": "vision"}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    write_shard(tmp_path / "toy" / "test-0000.tar", labelled(0, 18, 3, 16))
    listing = {"source": "made up", "count": 3, "sha256": words_sha256(NAMES), "names": NAMES}
    (tmp_path / "names.yaml").write_text(yaml.safe_dump(listing))
    data = {"name": "toy", "title": "Toy", "source": "wds:{data}/toy?split=test", "classes": "names.yaml"}
    data |= {"templates": ["a photo of a {}."], "metrics": ["top1"]}
    suite = tmp_path / "toy.yaml"
    suite.write_text(yaml.safe_dump({"name": "toy", "version": 1, "title": "Toy", "data": [data]}))
    return EvaluationRequest(
        model=str(tmp_path / "run"),
        suite=str(suite),
        data_root=str(tmp_path),
        attacks=(ATTACKS.create("fgsm"),),
        threats=(ThreatModel(eps="4/255"),),
        out=tmp_path / "curve",
    )


def test_the_ends_are_the_models_and_the_report_joins_the_points(request_of, tmp_path):
    rows = weight_curve(request_of, [1, 0.5, 0])
    assert [row.robust_weight for row in rows] == [0, 0.5, 1]
    assert {(row.dataset, row.attack, row.n) for row in rows} == {("toy", "FGSM-1", 18)}
    for row, model in ((rows[0], f"local-dir:{tmp_path}/original"), (rows[2], f"local-dir:{tmp_path}/run/model")):
        store = evaluate_suite(replace(request_of, model=model, out=tmp_path / "end" / model.rpartition("/")[2]))
        (unit,) = store.units()
        figures = store.aggregate(unit)
        assert row.clean_accuracy == figures.clean_accuracy
        assert row.robust_accuracy == figures.robust_accuracy
    page = build_report([row.run for row in rows], tmp_path / "page").read_text()
    assert "A line joins the weights between one original model and one robust model." in page
    assert all(f"run, robust weight {weight:g}" in page for weight in (0, 0.5, 1))


def test_what_is_done_is_not_done_again(request_of, monkeypatch):
    first = weight_curve(request_of, [0, 1])
    monkeypatch.setattr("ironclip.evaluation.evaluate.run_sequence", None)
    assert weight_curve(request_of, [0, 1]) == first


@pytest.mark.parametrize(
    ("model", "weights", "error", "said"),
    [
        ("tiny", [0, 1], ConfigError, "tiny is no training run"),
        (None, [], ConfigError, "a curve without weights"),
        (None, [0, 1.5], ValueRangeError, r"robust weight 1\.5, expected"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(request_of, model, weights, error, said):
    request = replace(request_of, model=model or request_of.model)
    with pytest.raises(error, match=said):
        weight_curve(request, weights)
    assert not request.out.exists()
