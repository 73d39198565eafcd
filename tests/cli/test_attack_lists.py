"""Lists of attacks through the whole evaluation: rows, resume after a kill, command line, report."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from ironclip.attacks.autoattack import AttackList
from ironclip.attacks.base import Attack
from ironclip.attacks.fgsm import FGSM
from ironclip.attacks.pgd import PGD
from ironclip.attacks.sequence import Member
from ironclip.attacks.square import Square
from ironclip.attacks.threat_model import ThreatModel
from ironclip.evaluation.evaluate import EvaluationRequest, evaluate_suite
from ironclip.evaluation.store import RunStore
from ironclip.evaluation.waterfall import waterfall
from ironclip.report.page import build_report

NAMES = ["blue", "green", "red"]
INCIDENTAL = ["seconds", "tile", "chunk"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the library may catch it."""


@dataclass(frozen=True, kw_only=True)
class Mortal(PGD):
    """PGD that can be killed at its start, and counts how often it is started."""

    dying: ClassVar[bool] = False
    started: ClassVar[int] = 0

    def start(self, *words):
        Mortal.started += 1
        if Mortal.dying:
            raise Killed
        return super().start(*words)


WEAK = PGD(steps=1, rel_step_size=0.85, start_at="zero")
LIST = AttackList(
    "three",
    "Three in a row",
    (Member("weak", WEAK), Member("Square", Square(queries=3)), Member("PGD", Mortal(steps=6, loss="dlr"))),
)
LABELS = ["weak", "Square", "PGD"]

MODEL = """
import torch

def make():
    colours = torch.tensor([[30, 30, 220], [30, 200, 30], [220, 30, 30]]) / 255
    noise = 0.05 * torch.randn(3, 3, 256, generator=torch.Generator().manual_seed(0))
    weight = (noise - noise.mean(dim=2, keepdim=True) + colours[:, :, None] / 128).flatten(1)
    return lambda pixels: pixels.flatten(1) @ weight.T
"""


@pytest.fixture
def evaluate(suite_file, data_root, tmp_path, monkeypatch):
    """Attack a model that is always right, by margins that the noise of the images spreads."""
    suite = suite_file(NAMES)
    (tmp_path / "colour_model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "colour_model", raising=False)

    def run(folder: str, *attacks: Attack | AttackList, **more) -> RunStore:
        request = EvaluationRequest(
            model="python:colour_model:make",
            suite=str(suite),
            data_root=str(data_root),
            attacks=attacks,
            threats=(ThreatModel(eps="6/255"),),
            out=tmp_path / folder,
            **more,
        )
        return evaluate_suite(request)

    return run


def rows_of(store: RunStore, unit: str | None = None) -> dict[str, dict]:
    unit = unit or store.units()[0]
    return {row["sample_id"]: row for row in store.read_unit(unit).drop_columns(INCIDENTAL).to_pylist()}


def test_a_sample_has_one_row_for_the_whole_list(evaluate):
    store = evaluate("list", LIST)
    (unit,) = store.units()
    record, rows = store.record(unit), rows_of(store)
    assert unit.startswith("colours--three--")
    assert record.attack.label == "Three in a row"
    assert [member.label for member in record.attack.members] == LABELS
    assert record.attack.members[2].settings["steps"] == 6
    alone = [rows_of(evaluate(f"alone {index}", member.attack)) for index, member in enumerate(LIST.members)]
    assert len(rows) == 60
    for key, row in rows.items():
        others = [one[key] for one in alone]
        assert row["broken"] == any(other["broken"] for other in others)
        if row["pred_clean"] != row["y"]:
            assert (row["attack"], row["forwards"]) == ("three", 1)
            continue
        winner = others[LABELS.index(row["attack"])]
        first = next((other for other in others if other["broken"]), None)
        assert winner == (first or max(others, key=lambda other: -other["margin_adv"]))
        for name in ("pred_adv", "margin_adv", "norm", "iterations", "restart", "best_loss", "loss_used", "logits_adv"):
            assert row[name] == winner[name], name
    stages = waterfall(store.read_unit(unit), record)
    assert [stage.label for stage in stages] == ["clean", *LABELS]
    standing = [key for key, row in rows.items() if row["pred_clean"] == row["y"]]
    counts = [len(standing)]
    for one in alone:
        standing = [key for key in standing if not one[key]["broken"]]
        counts.append(len(standing))
    assert [stage.standing for stage in stages] == counts
    assert 60 == counts[0] > counts[1] > counts[-1] > 0
    assert not list(store.path.glob("unfinished/*/*"))


def test_killed_within_a_list_it_goes_on_after_the_last_attack_that_was_finished(evaluate, monkeypatch, tmp_path):
    whole = rows_of(evaluate("whole", LIST, save="all"))
    monkeypatch.setattr(Mortal, "dying", True)
    with pytest.raises(Killed):
        evaluate("killed", LIST, save="all")
    store = RunStore.open(tmp_path / "killed")
    assert store.done_ids(store.units()[0]) == set()
    (left,) = store.path.glob("unfinished/*/*")
    assert "-2-" in left.name
    monkeypatch.setattr(Mortal, "dying", False)
    monkeypatch.setattr(Square, "start", lambda *words: pytest.fail("was run again"))
    before = Mortal.started
    store = evaluate("killed", LIST, save="all", tile=16)
    assert Mortal.started > before
    assert rows_of(store) == whole
    assert not list(store.path.glob("unfinished/*/*"))
    images, expected = (
        one.read_images(one.units()[0], set(whole)) for one in (store, RunStore.open(tmp_path / "whole"))
    )
    assert images.keys() == expected.keys() == whole.keys()
    assert all((images[key][1] == expected[key][1]).all() for key in whole)


@pytest.mark.parametrize("harm", ["damaged", "of other samples"])
def test_what_cannot_be_gone_on_with_is_begun_anew(evaluate, monkeypatch, tmp_path, harm):
    whole = rows_of(evaluate("whole", LIST))
    monkeypatch.setattr(Mortal, "dying", True)
    with pytest.raises(Killed):
        evaluate("killed", LIST)
    (left,) = (tmp_path / "killed").glob("unfinished/*/*")
    if harm == "damaged":
        left.write_bytes(left.read_bytes()[:-1] + b"\0")
    else:
        chunk, _, *rest = left.name.split("-")
        left.rename(left.with_name("-".join([chunk, "0" * 32, *rest])))
    monkeypatch.setattr(Mortal, "dying", False)
    assert rows_of(evaluate("killed", LIST)) == whole
    assert not list((tmp_path / "killed").glob("unfinished/*/*"))


def test_tiles_change_no_row(evaluate):
    whole = rows_of(evaluate("64", LIST, tile=64))
    for tile in (16, 32):
        assert rows_of(evaluate(str(tile), LIST, tile=tile)) == whole


def test_another_list_of_the_same_name_is_another_unit(evaluate):
    store = evaluate("run", LIST)
    other = AttackList("three", "Three in a row", (*LIST.members[:2], Member("PGD", Mortal(steps=1, loss="dlr"))))
    assert len(evaluate("run", other).units()) == 2
    swapped = AttackList("three", "Three in a row", LIST.members[::-1])
    assert len(evaluate("run", swapped).units()) == 3
    assert len(store.units()) == 1


def test_the_report_shows_what_each_attack_broke(evaluate, tmp_path):
    store = evaluate("run", LIST, FGSM())
    stages = waterfall(store.read_unit(store.units()[0]), store.record(store.units()[0]))
    page = build_report([store.path], tmp_path / "page").read_text()
    text = (tmp_path / "page" / "report.md").read_text()
    assert "only four attacks (FGSM-1, Three in a row) were run" in text
    assert "Three in a row: weak (steps = 1" in text
    shares = " | ".join(f"{100 * stage.standing / 60:.1f}" for stage in stages)
    assert f"| {shares} |" in text
    assert "| clean | weak | Square | PGD |" in text
    assert "What each attack broke" in page
    assert "Three in a row" in page


def test_a_list_by_name_on_the_command_line(ironclip, suite_file, data_root, model_folder):
    words = ("--suite", suite_file(NAMES), "--data-root", data_root, "--eps", "4/255", "--limit", "16")
    words = ("eval", f"local-dir:{model_folder}", *words, "--out", "run")
    result = ironclip(*words, "--attack", "quick", "--json")
    assert result.code == 0, result.err
    (row,) = json.loads(result.out)["rows"]
    assert row["attack"] == "Quick list"
    assert "--quick--" in row["unit"]
    assert "Quick list" in ironclip(*words, "--attack", "quick").out
    assert ironclip("report", "run", "--out", "page").code == 0
    assert "Noise" in Path("page", "report.md").read_text()

    result = ironclip(*words, "--attack", "quick:steps=3")
    assert result.code != 0
    assert "quick is a list of attacks, whose settings are fixed" in result.err
    result = ironclip(*words, "--attack", "standart")
    assert 'unknown attack "standart". Did you mean "standard"' in result.err


def test_lists_are_listed(ironclip):
    entries = json.loads(ironclip("list", "attacks", "--json").out)
    assert {"standard", "plus", "rand", "pair", "trust", "quick", "square", "corners"} <= set(entries)
