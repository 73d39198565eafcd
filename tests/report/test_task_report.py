"""Pages of tasks, from rows that were written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ironclip.errors import ConfigError, DataError
from ironclip.evaluation.image_files import Adversarials
from ironclip.evaluation.intervals import paired_difference, wilson
from ironclip.evaluation.records import AttackInfo, ModelInfo, SampleIds, Session, ThreatInfo
from ironclip.evaluation.resampling import mean_interval
from ironclip.evaluation.task_contrast import contrasts
from ironclip.evaluation.task_figures import mask_png, task_figures
from ironclip.evaluation.task_rows import SCHEMAS
from ironclip.evaluation.task_store import TaskRecord, TaskStore
from ironclip.report.task_gallery import coloured
from ironclip.report.task_page import build_task_report

IDS = [f"image {number}" for number in range(6)]
SESSION = Session(command="ironclip eval-task", versions={}, device="cpu", tile=16, row_invariance=0, created="today")


def record(task, name="original", eps="2/255", **settings):
    return TaskRecord(
        task=task,
        model=ModelInfo(name=name, source=name, sha256=name * 4),
        data="bundled:shapes",
        data_fingerprint="f" * 64,
        title="shapes",
        sample_ids=SampleIds.of(IDS),
        threat=ThreatInfo(record={"norm": "linf", "eps": eps}, hash=f"hash {eps}", caption=f"Linf {eps}"),
        attack=AttackInfo(name="ensemble", settings={"steps": 10}),
        settings=settings,
        sessions=(SESSION,),
    )


def row(task, key, **columns):
    """Fill a row with what its columns hold by default."""
    empty = {"string": "", "bool": False, "double": 0.0, "int32": 1, "binary": b""}
    plain = {field.name: empty.get(str(field.type), ["yes"]) for field in SCHEMAS[task]}
    return plain | {"sample_id": key, "image_id": key} | columns


def store_of(path, task, rows, *, images=True, **about):
    store = TaskStore.create(path, record(task, **about))
    kept = np.random.default_rng(0).random((len(rows), 3, 8, 8)).astype(np.float32)
    keys = [one["image_id"] for one in rows]
    store.write_chunk("00000", rows, Adversarials(keys, kept, kept / 2) if images else None)
    return store


def answers(right_clean, right_attacked):
    return [
        row(
            "answer",
            key,
            prompt="is there a dog?",
            references=["yes"],
            text_clean="yes" if at < right_clean else "no",
            text_attacked="yes <b>" if at < right_attacked else "no",
            score_clean=float(at < right_clean),
            score_attacked=float(at < right_attacked),
        )
        for at, key in enumerate(IDS)
    ]


def test_answers_have_their_figures_rates_and_pope(tmp_path):
    store = store_of(tmp_path / "a", "answer", answers(5, 2))
    found = task_figures(store.record, store.rows())
    (figure,) = found.figures
    assert (figure.clean, figure.attacked, figure.change.estimate) == (wilson(5, 6), wilson(2, 6), -3 / 6)
    assert (found.success["answer made wrong"].successes, found.success["answer made wrong"].denominator) == (3, 5)
    assert [one.recall for one in found.pope] == [5 / 6, 2 / 6]


def test_captions_have_the_bootstrap_of_their_scores(tmp_path):
    rows = [row("caption", key, score_clean=10.0 * at, score_attacked=5.0 * at) for at, key in enumerate(IDS)]
    store = store_of(tmp_path / "c", "caption", rows)
    (figure,) = task_figures(store.record, store.rows()).figures
    assert figure.clean == mean_interval([10.0 * at for at in range(6)])
    assert figure.change == mean_interval([-5.0 * at for at in range(6)])
    assert figure.change.high < 0


def test_ranks_become_shares_over_whole_images(tmp_path):
    rows = [
        row("retrieval", key, sample_id=f"{key}#{place}", direction="text to image", rank_clean=1, rank_attacked=rank)
        for key in IDS
        for place, rank in enumerate((1, 4, 9))
    ]
    store = store_of(tmp_path / "r", "retrieval", rows, images=False)
    figures = {one.name: one for one in task_figures(store.record, store.rows()).figures}
    assert [figures[f"text to image R@{k}"].attacked.estimate for k in (1, 5, 10)] == [1 / 3, 2 / 3, 1]
    # Every image loses the same: drawing images again says that, drawing queries would not.
    change = figures["text to image R@5"].change
    assert (change.low, change.high) == pytest.approx((-1 / 3, -1 / 3))


def test_two_models_are_compared_on_the_same_images(tmp_path):
    first = store_of(tmp_path / "a", "answer", answers(5, 0))
    second = store_of(tmp_path / "b", "answer", answers(4, 3), name="fare")
    (found,) = contrasts(first.record, first.rows(), second.record, second.rows())
    assert (found.clean.estimate, found.attacked.estimate) == pytest.approx((-1 / 6, 3 / 6))
    newcombe = paired_difference(0, 3, 0, 3)
    assert (found.attacked.low, found.attacked.high) == (newcombe.low, newcombe.high)
    other = store_of(tmp_path / "c", "answer", answers(4, 3), name="fare", eps="4/255")
    with pytest.raises(ConfigError, match="cannot be compared: threat is 'hash 2/255' for the first"):
        contrasts(first.record, first.rows(), other.record, other.rows())
    with pytest.raises(DataError, match="Finish both runs"):
        contrasts(first.record, first.rows(), second.record, second.rows()[:3])


def test_masks_are_compared_too(tmp_path):
    truth = np.zeros((4, 4), dtype=np.uint8)
    truth[:2] = 1
    wrong = mask_png(1 - truth)
    rows = [
        row("segmentation", key, truth=mask_png(truth), said_clean=mask_png(truth), said_attacked=wrong) for key in IDS
    ]
    better = [one | {"said_attacked": one["said_clean"]} for one in rows]
    names = {"class_names": ["ground", "dog"]}
    first = store_of(tmp_path / "a", "segmentation", rows, **names)
    second = store_of(tmp_path / "b", "segmentation", better, name="fare", **names)
    (figure,) = task_figures(first.record, first.rows()).figures
    assert (figure.clean.estimate, figure.attacked.estimate) == (1.0, 0.0)
    (found,) = contrasts(first.record, first.rows(), second.record, second.rows())
    assert (found.clean.estimate, found.attacked.estimate) == (0.0, 1.0)
    page = build_task_report([first.path, second.path], tmp_path / "out").read_text()
    assert "ground, dog" in page
    assert page.count("<img") == 2 * 6 * 5


def test_a_page_shows_sentences_beside_images_and_runs_no_markup_of_theirs(tmp_path):
    first = store_of(tmp_path / "a", "answer", answers(5, 2))
    silent = [one | {"text_attacked": ""} for one in answers(4, 0)]
    second = store_of(tmp_path / "b", "answer", silent, name="fare")
    page = build_task_report([first.path, second.path], tmp_path / "out").read_text()
    assert page.count("<img") == 2 * 6 * 2
    assert "yes &lt;b&gt;" in page
    assert "yes <b>" not in page
    assert page.count("says nothing") == 6
    assert "minus original" in page
    assert "http" not in page.partition("</style>")[2]
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "| accuracy | 83.3 % [" in markdown
    assert "-50.0 [" in markdown.replace("\N{MINUS SIGN}", "-")
    assert "## Answers: fare" in markdown
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match="Report the two kinds apart"):
        build_task_report([first.path, tmp_path / "other"], tmp_path / "out")


def test_colours_of_classes_differ():
    painted = coloured(np.arange(256, dtype=np.uint8).reshape(16, 16))
    assert painted.shape == (3, 16, 16)
    near = np.abs(painted[:, 0, :, None] - painted[:, 0, None, :]).sum(0) + np.eye(16)
    assert near.min() > 0.05


def test_rows_that_do_not_fit_are_refused(tmp_path):
    store = TaskStore.create(tmp_path / "a", record("answer"))
    with pytest.raises(DataError, match="has 0 rows"):
        store.write_chunk("00000", [])
    with pytest.raises(DataError, match="missing or unknown: stage"):
        store.write_chunk("00000", [{key: value for key, value in row("answer", "x").items() if key != "stage"}])
    with pytest.raises(DataError, match="does not fit the columns"):
        store.write_chunk("00000", [row("answer", "x", norm="far")])
    with pytest.raises(DataError, match=r"holds no task\.json"):
        TaskStore.open(tmp_path)


def test_a_damaged_chunk_counts_as_not_done(tmp_path):
    store = store_of(tmp_path / "a", "answer", answers(5, 2))
    assert store.done_chunks() == {"00000"}
    assert store.is_complete()
    (file,) = (store.path / "samples").iterdir()
    file.write_bytes(file.read_bytes()[:-10])
    assert store.done_chunks() == set()
    assert not store.is_complete()
