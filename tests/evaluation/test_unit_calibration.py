from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pydantic
import pytest

from ironclip.errors import DataError
from ironclip.evaluation.aggregate import AggregateRow, aggregate_rows
from ironclip.evaluation.calibration import Temperature
from ironclip.evaluation.records import AttackInfo, SampleIds, ThreatInfo, UnitRecord
from ironclip.evaluation.rows import SCHEMA
from ironclip.evaluation.unit_calibration import calibrate_rows, temperature_of
from oracles import calibration as oracle
from oracles import dirichlet

N, CLASSES = 60, 4


def made_up(prefix: str = "test", n: int = N, seed: int = 0, **changes) -> pa.Table:
    """Rows of a model that is often right, and of an attack that mostly breaks it; the order of rows is not sorted."""
    generator = np.random.default_rng(seed)
    clean = (3 * generator.normal(size=(n, CLASSES))).astype(np.float32)
    labels = np.where(generator.random(n) < 0.7, clean.argmax(axis=1), generator.integers(0, CLASSES, n))
    adv = clean.copy()
    right = clean.argmax(axis=1) == labels
    adv[right, labels[right]] -= 3
    plain = {
        "sample_id": [f"{prefix}/{(7 * index) % n:04d}" for index in range(n)],
        "y": labels,
        "pred_clean": clean.argmax(axis=1),
        "pred_adv": adv.argmax(axis=1),
        "broken": adv.argmax(axis=1) != labels,
        "logits_clean": clean.tolist(),
        "logits_adv": adv.tolist(),
    } | changes
    rest = {
        field.name: ["" if pa.types.is_string(field.type) else 0] * n for field in SCHEMA if field.name not in plain
    }
    columns = {**rest, **plain}
    return pa.table([pa.array(columns[field.name]).cast(field.type) for field in SCHEMA], schema=SCHEMA)


def record(ids, **rules) -> UnitRecord:
    return UnitRecord(
        dataset="pets",
        dataset_fingerprint="f",
        class_list_sha256="c",
        prompt_set_sha256="p",
        attack=AttackInfo(name="pgd"),
        threat=ThreatInfo(record={"norm": "linf", "eps": "2/255", **rules}, hash="9" * 8, caption=""),
        model_sha256="a",
        seed=0,
        sample_ids=SampleIds.of(ids),
        n_total=N,
    )


@pytest.fixture
def rows() -> pa.Table:
    return made_up()


@pytest.fixture
def unit(rows) -> UnitRecord:
    return record(rows["sample_id"].to_pylist(), logit_scale=100.0)


def test_figures_are_those_of_the_definitions(rows, unit):
    found = calibrate_rows(rows, unit)
    ids = rows["sample_id"].to_pylist()
    labels = rows["y"].to_pylist()
    assert (found.n, found.classes, found.edges, found.alpha_map) == (N, CLASSES, "right_closed", "ucat_train")
    clean_hits = [pred == y for pred, y in zip(rows["pred_clean"].to_pylist(), labels, strict=True)]
    adv_hits = [hit and not fell for hit, fell in zip(clean_hits, rows["broken"].to_pylist(), strict=True)]
    assert found.n_broken == sum(clean_hits) - sum(adv_hits) > 10
    for view, spread, column, hits in [
        (found.clean, found.clean_uncertainty, "logits_clean", clean_hits),
        (found.adv, found.adv_uncertainty, "logits_adv", adv_hits),
    ]:
        logits = rows[column].to_pylist()
        probs = [oracle.softmax(row) for row in logits]
        confidence = [max(row) for row in probs]
        assert view.accuracy == pytest.approx(sum(hits) / N)
        assert view.confidence == pytest.approx(np.mean(confidence))
        assert view.ece.estimate == pytest.approx(oracle.ece(confidence, hits, 15))
        assert view.ece_by_bins == {m: pytest.approx(oracle.ece(confidence, hits, m)) for m in (10, 20)}
        assert view.mce == pytest.approx(oracle.mce(confidence, hits, 15))
        assert view.adaptive_ece == pytest.approx(oracle.adaptive_ece(confidence, hits, ids, 15))
        assert view.classwise_ece == pytest.approx(np.mean(oracle.classwise_ece(probs, labels, 15)))
        assert view.thresholded_classwise_ece == pytest.approx(np.mean(oracle.classwise_ece(probs, labels, 15, 0.25)))
        assert view.brier.estimate == pytest.approx(oracle.brier(probs, labels))
        assert view.nll.estimate == pytest.approx(oracle.nll(probs, labels))
        assert view.aurc == pytest.approx(oracle.aurc(confidence, hits, ids))
        surer, wrong = ([c for c, hit in zip(confidence, hits, strict=True) if hit is kind] for kind in (True, False))
        assert view.error_auroc == pytest.approx(oracle.auroc(surer, wrong))
        assert sum(view.bins.counts) == N
        alpha = [[np.exp((z / 100 + 1) / 0.07) for z in row] for row in logits]
        expected = np.mean([float(dirichlet.mutual_information(row)) for row in alpha]) / np.log(CLASSES)
        assert spread.mutual_information.estimate == pytest.approx(expected, rel=1e-9)
        entropies = [float(dirichlet.total_entropy(row)) for row in probs]
        assert spread.entropy.estimate == pytest.approx(np.mean(entropies) / np.log(CLASSES))
        for interval in (view.ece, view.nll, view.brier, spread.entropy, spread.ucat_eu):
            assert interval.low < interval.estimate < interval.high


def test_attacked_against_clean(rows, unit):
    found = calibrate_rows(rows, unit)
    doubt = {
        side: [1 - max(oracle.softmax(row)) for row in rows[f"logits_{side}"].to_pylist()] for side in ("clean", "adv")
    }
    assert found.attacked_auroc["doubt"].estimate == pytest.approx(oracle.auroc(doubt["adv"], doubt["clean"]))
    table = rows.to_pylist()
    broken = [index for index, row in enumerate(table) if row["pred_clean"] == row["y"] and row["broken"]]
    expected = oracle.auroc([doubt["adv"][i] for i in broken], [doubt["clean"][i] for i in broken])
    assert found.broken_auroc["doubt"].estimate == pytest.approx(expected)
    assert len(found.attacked_auroc) == len(found.broken_auroc) == 7
    for one in (*found.attacked_auroc.values(), *found.broken_auroc.values()):
        assert 0 <= one.low <= one.estimate <= one.high <= 1


def test_an_attack_that_changed_nothing_is_not_noticed(unit):
    rows = made_up()
    same = made_up(logits_adv=rows["logits_clean"].to_pylist(), broken=[False] * N)
    found = calibrate_rows(same, unit)
    assert {one.estimate for one in found.attacked_auroc.values()} == {0.5}
    assert found.clean == found.adv
    assert (found.n_broken, found.broken_auroc) == (0, {})


def test_row_order_changes_nothing_and_draws_are_fixed(rows, unit):
    shuffled = rows.take(pa.array(np.random.default_rng(1).permutation(N)))
    assert calibrate_rows(shuffled, unit) == calibrate_rows(rows, unit)


def test_bootstrap_interval_has_the_width_of_a_standard_error():
    rows = made_up(n=400)
    found = calibrate_rows(rows, record([]))
    terms = [
        -np.log(oracle.softmax(row)[y])
        for row, y in zip(rows["logits_clean"].to_pylist(), rows["y"].to_pylist(), strict=True)
    ]
    expected = 2 * 1.96 * np.std(terms) / 20
    assert found.clean.nll.high - found.clean.nll.low == pytest.approx(expected, rel=0.1)


def test_without_a_logit_scale_concentrations_are_exponentials(rows):
    found = calibrate_rows(rows, record([]))
    assert found.alpha_map == "exp"
    uncertainty = found.clean_uncertainty
    parts = uncertainty.expected_entropy.estimate + uncertainty.mutual_information.estimate
    assert parts == pytest.approx(uncertainty.entropy.estimate)


def test_one_sample_of_two_classes():
    rows = made_up(n=1, logits_clean=[[0.0, 9.0]], logits_adv=[[0.0, 1.0]], y=[1], pred_clean=[1], broken=[False])
    found = calibrate_rows(rows, record([]))
    assert found.clean.error_auroc is None
    assert found.clean.ece.estimate == pytest.approx(1 - oracle.softmax([0, 9])[1])
    assert found.attacked_auroc["doubt"].estimate == 1


def test_a_temperature_of_other_images_is_applied_to_clean_and_attacked(rows, unit):
    validation = made_up("validation", n=200, seed=3)
    temperature = temperature_of(validation, rows)
    assert temperature.n == 200
    found = calibrate_rows(rows, unit, temperature=temperature)
    plain = calibrate_rows(rows, unit)
    assert plain == dataclasses.replace(found, tempered=None)
    for side in ("clean", "adv"):
        view = getattr(found.tempered, side)
        scaled = [oracle.softmax([z / temperature.value for z in row]) for row in rows[f"logits_{side}"].to_pylist()]
        assert view.nll.estimate == pytest.approx(oracle.nll(scaled, rows["y"].to_pylist()))
        assert view.accuracy == getattr(plain, side).accuracy
    assert found.tempered.clean.nll.estimate < plain.clean.nll.estimate


def test_a_temperature_of_the_judged_images_is_refused(rows):
    with pytest.raises(DataError, match="1 samples, test/0007 first, would both set the temperature and be judged"):
        temperature_of(rows.slice(1, 1), rows)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"logits_adv": [[]] * N}, "logits_adv has 0 entries"),
        ({"logits_clean": [[1.0]] * N}, "logits_clean has 1 entries"),
        ({"logits_clean": [[1.0, 2.0]] * (N - 1) + [[1.0]]}, r"has 1 entries, that of test/0000 has 2"),
        ({"logits_adv": [[1.0, np.inf, 0.0, 0.0]] * 2 + [[1.0] * 4] * (N - 2)}, "of 2 samples, test/0000 first, are n"),
        ({"logits_clean": [[1.0, np.nan, 0.0, 0.0]] + [[1.0] * 4] * (N - 1)}, "of 1 samples, test/0000 first, are n"),
    ],
)
def test_what_has_no_confidence_is_named(changes, words, unit):
    with pytest.raises(DataError, match=words):
        calibrate_rows(made_up(**changes), unit)
    row = aggregate_rows(made_up(**changes), unit)
    assert row.calibration is None
    assert row.uncalibrated
    assert row.robust_accuracy.estimate == aggregate_rows(made_up(), unit).robust_accuracy.estimate


def test_no_rows(unit):
    with pytest.raises(DataError, match="no rows to calibrate"):
        calibrate_rows(SCHEMA.empty_table(), unit)


def test_aggregates_hold_it_and_those_of_older_versions_can_be_read(rows, unit):
    adapter = pydantic.TypeAdapter(AggregateRow)
    row = aggregate_rows(rows, unit)
    assert row.calibration == calibrate_rows(rows, unit)
    assert row.calibration.clean.accuracy == row.clean_accuracy.estimate
    assert row.calibration.adv.accuracy == row.robust_accuracy.estimate
    plain = json.loads(json.dumps(adapter.dump_python(row, mode="json"), allow_nan=False))
    assert adapter.validate_json(json.dumps(plain)) == row
    del plain["calibration"], plain["uncalibrated"]
    old = adapter.validate_json(json.dumps(plain))
    assert old == dataclasses.replace(row, calibration=None)


def test_a_temperature_at_its_bound_is_kept_as_such(rows, unit):
    found = calibrate_rows(rows, unit, temperature=Temperature(20.0, at_bound=True, n=5))
    assert found.tempered.temperature.at_bound
