"""An evaluation lets the model choose its kernels, once, as its searches will run."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from ironclip.attacks.base import ATTACKS
from ironclip.attacks.threat_model import ThreatModel
from ironclip.evaluation import evaluate
from ironclip.evaluation.evaluate import EvaluationRequest


def test_kernels_are_chosen_once_for_tile_and_precision_of_the_search(tiny_clip, tmp_path, monkeypatch):
    model, asked = tiny_clip(), []
    monkeypatch.setattr(evaluate, "load_model", lambda *_, **__: model)
    monkeypatch.setattr(evaluate, "choose_kernels", lambda *given: asked.append(given))
    request = EvaluationRequest(
        model="tiny",
        suite="toy",
        data_root="",
        attacks=(ATTACKS.create("fgsm"),),
        threats=(ThreatModel(eps="4/255"),),
        out=tmp_path,
        tile=48,
        search_dtype="bfloat16",
    )
    infos = [SimpleNamespace(class_names=["dog", "cat"], templates=["a {}"])] * 2
    classifiers = evaluate._classifiers(request, infos)
    assert asked == [(model, 48, torch.bfloat16)]
    assert all(classifier.model is model for classifier in classifiers)
