"""Made-up runs: images are hard or easy, models are good or bad at them, and all of it is a function of the names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from ironclip.evaluation.image_files import Adversarials
from ironclip.evaluation.records import (
    AttackInfo,
    DatasetInfo,
    ModelInfo,
    RunRecord,
    SampleIds,
    Session,
    SuiteInfo,
    ThreatInfo,
    UnitRecord,
    gallery_ids,
)
from ironclip.evaluation.store import RunStore

CLASSES = ("airplane", "automobile", "bird", "cat", "deer")


def sha(*parts: object) -> str:
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()


def unit_draw(*parts: object) -> float:
    return int(sha(*parts)[:12], 16) / 16**12


def threat(eps: str, **rules: object) -> ThreatInfo:
    record = {"norm": "linf", "eps": eps, "acting_resolution": "native", "knowledge": "white-box", **rules}
    label = "Linf" if record["norm"] == "linf" else "L2"
    return ThreatInfo(
        record=record, hash=sha(*record.items()), caption=f"{label} {eps}, native 32x32, {record['knowledge']}"
    )


def picture(sample_id: str) -> np.ndarray:
    """A smooth colourful blob, float32 [3, 32, 32]."""
    y, x = np.mgrid[0:32, 0:32] / 31
    waves = [np.sin(6 * unit_draw(sample_id, c, 0) * x + 6 * unit_draw(sample_id, c, 1) * y + c) for c in range(3)]
    return (0.5 + 0.45 * np.stack(waves)).astype(np.float32)


@dataclass(frozen=True)
class Plan:
    """What a made-up run holds; `accuracy` maps eps (and "0") to the share right."""

    model: str
    accuracy: Mapping[str, float]
    datasets: tuple[str, ...] = ("cifar10",)
    n: int = 40
    n_total: int = 400
    n_done: int | None = None
    suite: SuiteInfo | None = SuiteInfo(name="natural", version="1", sha256=sha("suite"))
    attack: AttackInfo = AttackInfo(name="pgd", settings={"steps": 20, "rel_step_size": 0.25})
    rules: Mapping[str, object] = field(default_factory=dict)
    record: Mapping[str, object] = field(default_factory=dict)
    first_id: int = 0
    weights: str = ""
    metric: str = "top1"
    with_images: bool = True
    classes: tuple[str, ...] = CLASSES
    titles: Mapping[str, str] = field(default_factory=dict)


def write_run(path: Path, plan: Plan) -> Path:
    weights = plan.weights or sha("weights", plan.model)
    run = RunRecord(
        model=ModelInfo(name=plan.model, source=f"local-dir:models/{plan.model}", sha256=weights),
        suite=plan.suite,
        seed=0,
        datasets={
            name: DatasetInfo(
                title=plan.titles.get(name, name), source=f"wds:{name}", class_names=plan.classes, metric=plan.metric
            )
            for name in plan.datasets
        },
        sessions=(
            Session(
                command=f"ironclip eval natural --model local-dir:models/{plan.model} --limit {plan.n}",
                versions={"ironclip": "0.1.0", "torch": "2.0"},
                device="cpu",
                tile=32,
                row_invariance=0.0,
                created="2026-01-02T03:04:05Z",
            ),
        ),
    )
    store = RunStore.create(path, run)
    for name in plan.datasets:
        for eps in plan.accuracy:
            if eps != "0":
                _write_unit(store, plan, name, eps, weights)
    return path


def _write_unit(store: RunStore, plan: Plan, dataset: str, eps: str, weights: str) -> None:
    ids = [f"{dataset}/test/{index:05d}" for index in range(plan.first_id, plan.first_id + plan.n)]
    record = UnitRecord(
        dataset=dataset,
        dataset_fingerprint=sha("data", dataset),
        class_list_sha256=sha("classes", dataset),
        prompt_set_sha256=sha("prompts", dataset),
        attack=plan.attack,
        threat=threat(eps, **plan.rules),
        model_sha256=weights,
        seed=0,
        sample_ids=SampleIds.of(ids),
        n_total=plan.n_total,
    )
    unit = store.open_unit(replace(record, **plan.record))
    done = ids[: plan.n_done]
    shown = gallery_ids(done, 4) if plan.with_images else []
    clean = np.stack([picture(key) for key in shown]) if shown else np.empty((0, 3, 32, 32), np.float32)
    steps = [np.random.default_rng(int(sha(plan.model, key)[:8], 16)).choice([-1, 1], (3, 32, 32)) for key in shown]
    attacked = [np.clip(a + float(Fraction(eps)) * step, 0, 1) for a, step in zip(clean, steps, strict=True)]
    images = Adversarials(shown, clean, np.stack(attacked).astype(np.float32)) if shown else None
    store.write_chunk(unit, "0000", [_row(plan, dataset, key, eps, record) for key in done], images)


def _row(plan: Plan, dataset: str, key: str, eps: str, record: UnitRecord) -> dict:
    classes = len(plan.classes)
    label = int(unit_draw(key, "label") * classes)
    other = (label + 1 + int(unit_draw(key, "other") * (classes - 1))) % classes
    # Half of the luck is the image's and the same for all models, so models agree more than by chance.
    luck = unit_draw(key, "hard") if unit_draw(key, plan.model, "own") < 0.6 else unit_draw(key, plan.model)
    pred_clean = label if luck < plan.accuracy["0"] else other
    pred_adv = label if luck < plan.accuracy[eps] else other
    hit = pred_clean == label

    def logits(prediction: int) -> list[float]:
        return [float(np.float32(3.0 * (index == prediction) + unit_draw(key, index))) for index in range(classes)]

    return {
        "sample_id": key,
        "y": label,
        "pred_clean": pred_clean,
        "margin_clean": 1.0 if hit else -1.0,
        "pred_adv": pred_adv,
        "margin_adv": 1.0 if pred_adv == label else -1.0,
        "broken": pred_adv != label,
        "attack": plan.attack.name,
        "loss_used": "ce",
        "restart": 0,
        "target": -1,
        "best_loss": 1.0,
        "norm": float(Fraction(eps)) if hit else 0.0,
        "iterations": 3 if hit and pred_adv != label else -1,
        "forwards": 22 if hit else 1,
        "backwards": 20 if hit else 0,
        "seconds": 0.25,
        "near_tie": False,
        "false_claims": 0,
        "invalid": False,
        "logits_clean": logits(pred_clean),
        "logits_adv": logits(pred_adv),
        "tile": 32,
        "dtype": "float32",
        "threat_hash": record.threat.hash,
        "model_sha256": record.model_sha256,
        "seed": 0,
    }


@pytest.fixture
def make_run(tmp_path) -> Callable[..., Path]:
    """Write a made-up run from the fields of a `Plan` and return its folder."""

    def make(model: str, accuracy: Mapping[str, float], *, folder: str | None = None, **fields) -> Path:
        return write_run(tmp_path / (folder or model), Plan(model, accuracy, **fields))

    return make
