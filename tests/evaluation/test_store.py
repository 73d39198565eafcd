from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ironclip.errors import ConfigError, DataError, ResumeError, ShapeError
from ironclip.evaluation.aggregate import Totals
from ironclip.evaluation.image_files import Adversarials
from ironclip.evaluation.intervals import wilson
from ironclip.evaluation.merging import merge
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
    first_difference,
    gallery_ids,
)
from ironclip.evaluation.rows import SCHEMA, ConflictError
from ironclip.evaluation.store import RunStore
from ironclip.files import read_hashed, write_atomically, write_hashed

IDS = [f"pets/test/{index:03d}" for index in range(12)]
SESSION = Session(
    command="ironclip eval",
    versions={"ironclip": "0.1"},
    device="cpu",
    tile=32,
    row_invariance=0.0,
    created="2026-01-02T03:04:05Z",
)
RUN = RunRecord(
    model=ModelInfo(name="original", source="local-dir:m", sha256="a" * 64),
    suite=SuiteInfo(name="natural", version="1", sha256="5" * 64),
    seed=7,
    datasets={"pets": DatasetInfo(title="Pets", source="folder:pets", class_names=("cat", "dog", "eel"))},
    sessions=(SESSION,),
)
UNIT = UnitRecord(
    dataset="pets",
    dataset_fingerprint="f" * 64,
    class_list_sha256="c" * 64,
    prompt_set_sha256="d" * 64,
    attack=AttackInfo(name="pgd", settings={"steps": 20, "rel_step_size": 0.25}),
    threat=ThreatInfo(record={"norm": "linf", "eps": "2/255"}, hash="9" * 64, caption="Linf 2/255"),
    model_sha256="a" * 64,
    seed=7,
    sample_ids=SampleIds.of(IDS),
    n_total=120,
)


def row(sample_id: str, **changes) -> dict:
    index = int(sample_id[-3:])
    values = {
        "sample_id": sample_id,
        "y": index % 3,
        "pred_clean": index % 3 if index % 4 else (index + 1) % 3,  # 9 of 12 right
        "margin_clean": 1.5,
        "pred_adv": (index + 1) % 3,
        "margin_adv": -0.5,
        "broken": index % 2 == 0,
        "attack": "pgd",
        "loss_used": "ce",
        "restart": 0,
        "target": -1,
        "best_loss": 2.25,
        "norm": 2 / 255,
        "iterations": 3,
        "forwards": 21,
        "backwards": 20,
        "seconds": 0.5,
        "near_tie": False,
        "false_claims": 1 if index == 4 else 0,
        "invalid": index == 5,
        "logits_clean": [1.0, 0.0, -1.0],
        "logits_adv": [0.0, 0.5, -1.0],
        "tile": 32,
        "dtype": "float32",
        "threat_hash": "9" * 64,
        "model_sha256": "a" * 64,
        "seed": 7,
    }
    return values | changes


def rows(ids, **changes) -> list[dict]:
    return [row(sample_id, **changes) for sample_id in ids]


@pytest.fixture
def store(tmp_path) -> RunStore:
    store = RunStore.create(tmp_path / "run", RUN)
    store.open_unit(UNIT)
    return store


def shard(path: Path, ids, *, chunk="0000", run=RUN, unit=UNIT, **changes) -> Path:
    store = RunStore.create(path, run)
    store.write_chunk(store.open_unit(unit), chunk, rows(ids, **changes))
    return path


def test_what_was_written_is_read_back(store):
    unit = UNIT.unit_id
    assert unit == f"pets--pgd--{UNIT.attack.hash[:4]}--99999999"
    path = store.write_chunk(unit, "0000", rows(IDS[6:]))
    store.write_chunk(unit, "0001", pa.Table.from_pylist([dict(one, chunk="") for one in rows(IDS[:6])], schema=SCHEMA))
    assert path.parent == store.path / "samples" / unit
    assert read_hashed(path) is not None
    again = RunStore.open(store.path)
    assert again.units() == [unit]
    assert again.record(unit) == UNIT
    assert replace(again.run, units={}) == RUN
    assert again.done_ids(unit) == set(IDS)
    table = again.read_unit(unit)
    assert table.schema == SCHEMA
    assert table.to_pylist() == [row(key, chunk="0001" if key < IDS[6] else "0000") for key in IDS]  # floats are exact


def test_aggregate_by_hand(store):
    store.write_chunk(UNIT.unit_id, "0000", rows(IDS))
    found = store.aggregate(UNIT.unit_id)
    # Right before: all but 0, 4, 8. Broken: even. Robust: the six odd ones.
    assert (found.totals.n, found.n_declared, found.n_total, found.coverage) == (12, 12, 120, "complete")
    assert found.clean_accuracy == wilson(9, 12)
    assert found.robust_accuracy == wilson(6, 12)
    assert found.attack_success_rate == wilson(3, 9)
    # By class (index mod 3): class 0 has 0 3 6 9, class 1 has 1 4 7 10, class 2 has 2 5 8 11.
    assert found.clean_mean_per_class.estimate == pytest.approx((3 / 4 + 3 / 4 + 3 / 4) / 3)
    assert found.robust_mean_per_class.estimate == pytest.approx((2 / 4 + 2 / 4 + 2 / 4) / 3)
    assert found.totals == Totals(
        n=12, n_invalid=1, n_near_tie=0, n_false_claims=1, forwards=252, backwards=240, seconds=6.0
    )
    assert (found.totals + found.totals).seconds == 12.0


def test_partial_coverage_is_said_and_its_interval_holds_for_any_outcome(store):
    store.write_chunk(UNIT.unit_id, "0000", rows(IDS[:8]))  # 8 of 12: robust are 1 3 5 7
    found = store.aggregate(UNIT.unit_id)
    assert found.coverage == "partial"
    assert found.robust_accuracy.estimate == 0.5
    assert found.robust_accuracy.low == wilson(4, 12).low
    assert found.robust_accuracy.high == wilson(8, 12).high
    assert found.attack_success_rate is found.robust_mean_per_class is None


def test_rows_of_samples_that_were_not_declared_are_refused(store):
    store.write_chunk(UNIT.unit_id, "0000", rows([*IDS[:11], "pets/test/099"]))
    with pytest.raises(DataError, match="12 samples that are not the 12 declared"):
        store.aggregate(UNIT.unit_id)


def test_aggregates_on_disk_are_replaced_and_never_read(store):
    store.open_unit(replace(UNIT, attack=AttackInfo(name="fgsm")))  # declared, no rows yet
    store.write_chunk(UNIT.unit_id, "0000", rows(IDS))
    file = store.path / "rows" / f"{UNIT.unit_id}.json"
    write_atomically(file, b"nonsense")
    store.write_aggregates()
    assert json.loads(file.read_text())["robust_accuracy"]["estimate"] == 0.5
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    file.write_text("{}")
    assert RunStore.open(store.path).aggregate(UNIT.unit_id).totals.n == 12


def test_no_rows_yet(store):
    assert store.done_ids(UNIT.unit_id) == set()
    with pytest.raises(DataError, match="has no rows yet"):
        store.aggregate(UNIT.unit_id)


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the library may catch it."""


@pytest.mark.parametrize("moment", range(18))
def test_killed_at_any_file_operation_and_resumed(tmp_path, monkeypatch, moment):
    operations = iter(range(1000))

    def dying(function):
        def call(*args, **kwargs):
            if next(operations) == moment:
                raise Killed
            return function(*args, **kwargs)

        return call

    images = np.zeros((1, 3, 2, 2), np.float32)

    def evaluate():
        store = RunStore.create(tmp_path / "run", RUN)
        unit = store.open_unit(UNIT)
        for start in (0, 6):
            pending = [key for key in IDS[start : start + 6] if key not in store.done_ids(unit)]
            if pending:
                store.write_chunk(unit, f"{start:04d}", rows(pending), Adversarials([pending[0]], images, images))
        return store.read_unit(unit)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", dying(os.fsync))
        patched.setattr(Path, "replace", dying(Path.replace))
        with pytest.raises(Killed):
            evaluate()
    assert [one["sample_id"] for one in evaluate().to_pylist()] == IDS
    assert RunStore.open(tmp_path / "run").damaged(UNIT.unit_id) == []


def test_a_temporary_file_is_not_a_chunk(store):
    whole = store.write_chunk(UNIT.unit_id, "0000", rows(IDS[:3]))
    (whole.parent / f".{whole.name}.123.tmp").write_bytes(whole.read_bytes()[:100])
    assert store.done_ids(UNIT.unit_id) == set(IDS[:3])
    assert store.damaged(UNIT.unit_id) == []


@pytest.mark.parametrize("harm", ["truncated", "one bit", "renamed"])
def test_a_damaged_chunk_is_reported_ignored_and_replaced(store, harm, caplog):
    unit = UNIT.unit_id
    store.write_chunk(unit, "0000", rows(IDS[:6]))
    path = store.write_chunk(unit, "0001", rows(IDS[6:]))
    content = bytearray(path.read_bytes())
    if harm == "truncated":
        path.write_bytes(content[:-10])
    elif harm == "one bit":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path = path.rename(path.with_name("0001-00000000.parquet"))
    assert store.damaged(unit) == [path]
    assert store.done_ids(unit) == set(IDS[:6])
    assert "is damaged" in caplog.text
    assert store.aggregate(unit).coverage == "partial"
    store.write_chunk(unit, "0001", rows(IDS[6:], seconds=0.75))
    assert store.damaged(unit) == []
    assert store.aggregate(unit).coverage == "complete"


def test_resume_goes_on_and_remembers_where(store):
    store.write_chunk(UNIT.unit_id, "0000", rows(IDS[:6]))
    same = replace(SESSION, created="2026-01-03T00:00:00Z")
    assert RunStore.create(store.path, replace(RUN, sessions=(same,))).run.sessions == (SESSION,)
    moved = replace(SESSION, device="cuda", tile=128)
    more = DatasetInfo(title="Digits", source="bundled:digits", class_names=("0", "1"))
    again = RunStore.create(store.path, replace(RUN, sessions=(moved,), datasets={"digits": more}))
    assert again.run.sessions == (SESSION, moved)  # another device and tile is no reason to refuse
    assert list(again.run.datasets) == ["pets", "digits"]
    assert again.done_ids(again.open_unit(UNIT)) == set(IDS[:6])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 8}, "seed = 7, asked for is 8"),
        ({"model": replace(RUN.model, sha256="b" * 64)}, r"model.sha256 = 'a+', asked for is 'b+'"),
        ({"suite": replace(RUN.suite, version="2")}, "suite.version = '1', asked for is '2'"),
        ({"suite": None}, "suite = .*, asked for is None"),
    ],
)
def test_resume_refuses_another_run(store, changes, words):
    with pytest.raises(ResumeError, match=words):
        RunStore.create(store.path, replace(RUN, **changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset_fingerprint": "0"}, "dataset_fingerprint"),
        ({"sample_ids": SampleIds.of(IDS[:5])}, "sample_ids.count = 12, asked for is 5"),
        ({"parity": "TeCoA"}, "parity = 'none', asked for is 'TeCoA'"),
        ({"class_list_sha256": "0"}, "class_list_sha256"),
        ({"threat": replace(UNIT.threat, hash="9" * 8)}, "threat.hash"),
    ],
)
def test_resume_refuses_another_unit_and_names_the_field(store, changes, words):
    with pytest.raises(ResumeError, match=words):
        store.open_unit(replace(UNIT, **changes))


def test_a_unit_of_an_undescribed_data_set_is_refused(store):
    with pytest.raises(DataError, match='about "cars", which the run does not describe'):
        store.open_unit(replace(UNIT, dataset="cars"))
    with pytest.raises(DataError, match='no unit "x"'):
        store.read_unit("x")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "has no rows"),
        ([{k: v for k, v in row(IDS[0]).items() if k != "norm"}], r"lacks \['norm'\]"),
        (rows(IDS[:1], queries=5), r"unknown \['queries'\]"),
        (rows(IDS[:1], y="cat"), "does not fit the columns"),
        (rows(IDS[:1], margin_adv=float("nan")), "margin_adv is empty or NaN in 1 places"),
        (rows(IDS[:1], logits_adv=[1.0, float("nan"), 0.0]), "logits_adv is empty or NaN"),
        (rows(IDS[:1], broken=None), "broken is empty or NaN"),
        (rows(IDS[:1], seed=8), f"seed = 8, its unit {UNIT.unit_id} has 7"),
        (rows(IDS[:1], threat_hash="x"), "threat_hash = 'x'"),
        ([*rows(IDS[:2]), *rows(IDS[1:2])], "sample pets/test/001 twice"),
    ],
)
def test_rows_that_do_not_belong_are_refused(store, given, words):
    with pytest.raises(DataError, match=words):
        store.write_chunk(UNIT.unit_id, "0000", given)
    assert store.done_ids(UNIT.unit_id) == set()


def test_images_come_back_bit_for_bit(store):
    clean = np.random.default_rng(0).random((2, 3, 4, 4), dtype=np.float32)
    images = Adversarials([IDS[1], IDS[0]], clean, clean + np.float32(0.25))
    store.write_chunk(UNIT.unit_id, "0000", rows(IDS[:4]), images)
    assert store.image_ids(UNIT.unit_id) == set(IDS[:2])
    found = store.read_images(UNIT.unit_id, [IDS[0], IDS[3]])
    assert list(found) == [IDS[0]]
    np.testing.assert_array_equal(found[IDS[0]][0], clean[1])
    np.testing.assert_array_equal(found[IDS[0]][1], clean[1] + np.float32(0.25))


def test_images_without_rows_or_of_other_shapes_are_refused(store):
    one = np.zeros((1, 3, 4, 4), np.float32)
    with pytest.raises(DataError, match="images of pets/test/009, which has no row"):
        store.write_chunk(UNIT.unit_id, "0000", rows(IDS[:4]), Adversarials([IDS[9]], one, one))
    with pytest.raises(ShapeError, match="2 keys for clean images"):
        store.write_chunk(UNIT.unit_id, "0000", rows(IDS[:4]), Adversarials(IDS[:2], one, one))


def test_merge_of_shards_equals_the_whole(tmp_path):
    whole = RunStore.open(shard(tmp_path / "whole", IDS))
    one = shard(tmp_path / "one", IDS[::2])
    elsewhere = replace(RUN, sessions=(replace(SESSION, device="cuda", tile=64),))
    two = shard(tmp_path / "two", IDS[1::2], run=elsewhere)
    assert RunStore.open(one).aggregate(UNIT.unit_id).coverage == "partial"
    merged = merge([one, two], tmp_path / "out")
    assert merged.aggregate(UNIT.unit_id) == whole.aggregate(UNIT.unit_id)
    assert [session.device for session in merged.run.sessions] == ["cpu", "cuda"]
    assert json.loads((merged.path / "rows" / f"{UNIT.unit_id}.json").read_text())["coverage"] == "complete"
    assert merged.read_unit(UNIT.unit_id).drop("chunk").equals(whole.read_unit(UNIT.unit_id).drop("chunk"))
    assert not (tmp_path / ".out.merging").exists()


def test_merge_takes_equal_duplicates_once_whatever_their_time_and_tile(tmp_path):
    one = shard(tmp_path / "one", IDS[:8])
    two = shard(tmp_path / "two", IDS[4:], chunk="0009", seconds=9.0, tile=64)
    merged = merge([one, two], tmp_path / "out")
    assert merged.aggregate(UNIT.unit_id).coverage == "complete"
    assert merged.read_unit(UNIT.unit_id).num_rows == 12


def test_merge_names_the_sample_in_conflict_and_leaves_nothing_behind(tmp_path):
    one = shard(tmp_path / "one", IDS[:8])
    two = shard(tmp_path / "two", IDS[7:], margin_adv=-0.25)
    with pytest.raises(ConflictError, match=r"sample pets/test/007 .* margin_adv differs \(-0.5 against -0.25\)"):
        merge([one, two], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_merge_of_some_shards_is_partial(tmp_path):
    merged = merge([shard(tmp_path / "one", IDS[:3]), shard(tmp_path / "two", IDS[3:5])], tmp_path / "out")
    assert merged.aggregate(UNIT.unit_id).coverage == "partial"


def test_unreadable_samples_stay_on_record_and_are_merged(tmp_path):
    one, two = shard(tmp_path / "one", IDS[:5]), shard(tmp_path / "two", IDS[6:11])
    store = RunStore.open(one)
    store.note_unreadable(UNIT.unit_id, {IDS[5]: "truncated"})
    store.note_unreadable(UNIT.unit_id, {IDS[4]: "no image"})
    RunStore.open(two).note_unreadable(UNIT.unit_id, {IDS[11]: "empty file"})
    assert RunStore.open(one).run.unreadable == {UNIT.unit_id: {IDS[5]: "truncated", IDS[4]: "no image"}}
    merged = merge([one, two], tmp_path / "out")
    assert merged.run.unreadable[UNIT.unit_id] == {IDS[5]: "truncated", IDS[4]: "no image", IDS[11]: "empty file"}
    assert merged.aggregate(UNIT.unit_id).coverage == "partial"
    with pytest.raises(DataError, match='no unit "x"'):
        store.note_unreadable("x", {})


def test_merge_leaves_damaged_chunks_behind(tmp_path, caplog):
    one, two = shard(tmp_path / "one", IDS[:6]), shard(tmp_path / "two", IDS[6:])
    chunk = next((two / "samples" / UNIT.unit_id).iterdir())
    chunk.write_bytes(b"")
    merged = merge([one, two], tmp_path / "out")
    assert merged.done_ids(UNIT.unit_id) == set(IDS[:6])
    assert merged.damaged(UNIT.unit_id) == []
    assert chunk.name in caplog.text


def test_merge_joins_units_of_one_model(tmp_path):
    other = replace(UNIT, threat=replace(UNIT.threat, hash="8" * 64))
    one = shard(tmp_path / "one", IDS)
    two = shard(tmp_path / "two", IDS, unit=other, threat_hash="8" * 64)
    assert merge([one, two], tmp_path / "out").units() == [UNIT.unit_id, other.unit_id]


@pytest.mark.parametrize(
    ("run", "unit", "words"),
    [
        (replace(RUN, seed=8), UNIT, "seed is 7 in the first, 8 in the second"),
        (RUN, replace(UNIT, n_total=99), f"{UNIT.unit_id}: n_total is 120 in the first, 99 in the second"),
    ],
)
def test_merge_refuses_another_game(tmp_path, run, unit, words):
    one, two = shard(tmp_path / "one", IDS[:6]), shard(tmp_path / "two", IDS[6:], run=run, unit=unit)
    with pytest.raises(ConfigError, match=words):
        merge([one, two], tmp_path / "out")


def test_folders_that_are_not_runs(tmp_path):
    with pytest.raises(DataError, match="no run folder"):
        RunStore.open(tmp_path)
    with pytest.raises(ConfigError, match="no runs to merge"):
        merge([], tmp_path / "out")
    (tmp_path / "thesis.txt").write_text("do not overwrite")
    with pytest.raises(ConfigError, match="is no run folder"):
        RunStore.create(tmp_path, RUN)
    with pytest.raises(ConfigError, match="is no run folder"):
        merge([shard(tmp_path / "one", IDS)], tmp_path)


def test_damaged_or_newer_record(store):
    file = store.path / "run.json"
    whole = json.loads(file.read_text())
    file.write_text(json.dumps(whole | {"schema_version": 99}))
    with pytest.raises(DataError, match="schema version 99, expected 1"):
        RunStore.open(store.path)
    file.write_text(file.read_text()[:50])
    with pytest.raises(DataError, match=r"run.json cannot be read: .*Invalid JSON"):
        RunStore.open(store.path)
    file.write_text(json.dumps({key: value for key, value in whole.items() if key != "seed"}))
    with pytest.raises(DataError, match=r"run.json.seed: Field required"):
        RunStore.open(store.path)


def test_threat_without_a_radius_is_refused():
    assert float(UNIT.threat.radius) == 2 / 255
    with pytest.raises(ConfigError, match='has no "eps"'):
        _ = replace(UNIT.threat, record={"norm": "linf"}).radius
    with pytest.raises(ConfigError, match="eps = 'big'"):
        _ = replace(UNIT.threat, record={"eps": "big"}).radius


def test_first_difference_names_the_leaf():
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 1}}) is None
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 2}}) == ("a.b", 1, 2)
    assert first_difference({"a": 1}, {"a": 1, "c": [2]}) == ("c", None, [2])


def test_sample_ids_ignore_order_and_gallery_ids_ignore_it_too():
    assert SampleIds.of(IDS) == SampleIds.of(reversed(IDS))
    assert SampleIds.of(IDS) != SampleIds.of(IDS[1:])
    chosen = gallery_ids(IDS, 4)
    assert chosen == gallery_ids(reversed(IDS), 4) != IDS[:4]
    # Halving the pool keeps what is left in order: shards agree on the gallery.
    assert gallery_ids(IDS[::2], 12) == [key for key in gallery_ids(IDS, 12) if key in IDS[::2]]


def test_unit_ids_are_safe_file_names():
    record = replace(UNIT, dataset="wds:/data/x y", threat=replace(UNIT.threat, hash="0123456789"))
    assert record.unit_id == f"wds_data_x_y--pgd--{record.attack.hash[:4]}--01234567"
    other = replace(record, attack=replace(record.attack, settings={"steps": 50}))
    assert other.unit_id != record.unit_id


def test_hashed_files(tmp_path):
    path = write_hashed(tmp_path / "deep" / "er", "0000", ".bin", b"abc")
    assert path.name == "0000-ba7816bf.bin"  # sha256("abc") of FIPS 180-2
    assert read_hashed(path) == b"abc"


def test_a_row_of_a_list_bears_the_label_of_an_attack_in_it(tmp_path):
    members = (AttackInfo(name="fgsm", title="FGSM"), AttackInfo(name="pgd", settings={"steps": 20}))
    unit = replace(UNIT, attack=AttackInfo(name="standard", title="AutoAttack standard", members=members))
    store = RunStore.create(tmp_path / "run", RUN)
    name = store.open_unit(unit)
    labels = ("FGSM", "PGD-20", "standard")
    store.write_chunk(name, "0000", [row(key, attack=label) for key, label in zip(IDS[:3], labels, strict=True)])
    again = RunStore.open(store.path)
    assert again.record(name) == unit
    assert again.record(name).attack.label == "AutoAttack standard"
    with pytest.raises(DataError, match=r"rows with attack = 'pgd', its unit .* has 'standard'"):
        store.write_chunk(name, "0001", rows(IDS[3:5]))


def test_the_hash_of_a_list_is_that_of_its_attacks_in_their_order():
    first, second = AttackInfo(name="fgsm"), AttackInfo(name="pgd", settings={"steps": 20})
    lists = [AttackInfo(name="two", members=members) for members in ((first, second), (second, first), (first,), ())]
    assert len({one.hash for one in lists}) == 4
    longer = replace(second, settings={"steps": 30})
    assert AttackInfo(name="two", members=(first, longer)).hash != lists[0].hash
