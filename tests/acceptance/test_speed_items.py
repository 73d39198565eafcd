"""The items of speed can fail: each is shown something that is wrong."""

from __future__ import annotations

import json
import resource
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from acceptance.claims import CannotRunError, Context
from benchmarks.attack_race import Lap, Race

from acceptance import (
    speed,
    speed_attacks,
    speed_memory,
    speed_paths,
    speed_precision,
    speed_tuned,
)
from ironclip.evaluation.comparison import contest


def test_items_and_claims_have_names_of_their_own():
    assert len({item.name for item in speed.ITEMS}) == len(speed.ITEMS)
    for item in speed.ITEMS:
        assert item.claims
        assert len({claim.name for claim in item.claims}) == len(item.claims)


@pytest.mark.parametrize("item", speed.ITEMS, ids=lambda item: item.name)
def test_modules_of_an_item_exist(item):
    assert [module for module in item.modules if find_spec(module) is None] == []


# The two paths


def test_seeds_that_move_both_sides_alike_are_no_difference():
    """Unpaired, three seeds between 20 and 60 % right would hide anything; paired, they hide nothing."""
    verdicts = np.zeros((3, 1000), dtype=bool)
    for row, share in enumerate((200, 400, 600)):
        verdicts[row, :share] = True
    same = speed_paths.paired_by_seed(verdicts, verdicts)
    assert same.difference == 0
    assert same.seed_error == 0
    assert same.widest < 0.3
    unpaired = contest("fast", verdicts, "plain", verdicts)
    assert unpaired.high > 0.2


def test_the_interval_holds_the_textbook_one_where_seeds_agree():
    """Every seed alike: the variance is that of the images alone, and there are so many that Student is normal."""
    first, second = np.zeros((3, 4000), dtype=bool), np.zeros((3, 4000), dtype=bool)
    first[:, :100] = True
    second[:, 100:160] = True
    found = speed_paths.paired_by_seed(first, second)
    assert found.difference == pytest.approx(0.01)
    error = np.sqrt((160 / 4000 - 0.01**2) / 4000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.01)
    assert found.widest == pytest.approx(100 * (0.01 + 1.96 * error), rel=0.01)


def test_seeds_that_disagree_widen_the_interval():
    first, second = np.zeros((3, 1000), dtype=bool), np.zeros((3, 1000), dtype=bool)
    first[0, :20], second[1, :20] = True, True
    found = speed_paths.paired_by_seed(first, second)
    assert found.difference == 0
    # Differences of +2, -2 and 0 points: Student's interval of three values by itself is 2 / sqrt(3) * 4.30.
    assert found.seed_error == pytest.approx(0.02 / np.sqrt(3))
    assert found.widest > speed_paths.FARTHEST


def test_runs_of_a_seed_differ_in_path_and_precision_alone():
    for seed in speed_tuned.SEEDS:
        (fast, on), (plain, off) = (
            speed_tuned.shortened(speed_tuned.run_name("tecoa", path, seed)) for path in speed_tuned.PATHS
        )
        assert (on, off) == (True, False)
        assert (fast.optimisation.precision, plain.optimisation.precision) == ("bf16", "float32")
        alike = plain.optimisation.model_copy(update={"precision": "bf16"})
        assert plain.model_copy(update={"optimisation": alike}) == fast
        assert fast.seed == seed
        assert fast.optimisation.steps == speed_tuned.STEPS
    assert speed_tuned.TECOA in speed_tuned.RUNS
    assert speed_tuned.FARE in speed_tuned.RUNS


def test_what_is_not_trained_yet_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(speed_tuned, "KEPT", tmp_path)
    monkeypatch.setattr(speed_tuned, "key_of", lambda item: "0" * 64)
    with pytest.raises(CannotRunError, match="--only tuned_shortly"):
        speed_tuned.weights_of(speed_tuned.TECOA)


# Low precision


def test_a_search_that_misses_breaks_is_noticed():
    high = torch.zeros(5000, dtype=torch.bool)
    high[:1500] = True
    equal = speed_precision.compared(high, high)
    assert speed_precision.widest(equal) < 0.1
    assert 100 * equal.low <= 0
    flattered = high.clone()
    flattered[1500:1525] = True  # half a point
    found = speed_precision.compared(flattered, high)
    assert found.difference == pytest.approx(0.005)
    assert 100 * found.low > 0
    assert found.p_value < 1e-6
    stricter = speed_precision.compared(high, flattered)
    assert 100 * stricter.low <= 0
    flattered[1525:1600] = True
    assert speed_precision.widest(speed_precision.compared(flattered, high)) > 1


# Attacks


def made_up_race(ours: float, theirs: float) -> Race:
    mine = Lap(ours, {"bfloat16": 90, "float32": 10}, {"bfloat16": 100}, 7)
    other = Lap(theirs, {"float32": 120}, {"float32": 100}, 5)
    return Race(
        attack="pair",
        peer="pyautoattack",
        eps="3/255",
        images=(100, 100),
        batches=(64, 32),
        tried=(32, 64),
        laps=((mine, other), (mine, other)),
        operations=((1.0, 1.0), (1.0, 1.0)),
        rates={"float32": 1.0, "bfloat16": 2.0},
        load=0.1,
    )


@pytest.mark.parametrize(("theirs", "holds"), [(2.3, True), (2.1, False)])
def test_the_ratio_of_a_race_is_judged(theirs, holds, tmp_path, monkeypatch):
    item = speed_attacks.pair_speed
    monkeypatch.setattr(speed_attacks, "tuned", lambda name: tmp_path)
    monkeypatch.setattr(speed_attacks, "open_pair", lambda *arguments: (None, None))
    monkeypatch.setattr(speed_attacks, "run_pair", lambda *arguments, kept: made_up_race(1.0, theirs))
    found = {figure.claim: figure for figure in item.measure(Context(tmp_path))}
    bounds = {claim.name: claim.bound for claim in item.claims}
    assert bounds["ratio"].holds(found["ratio"].value) is holds
    assert not bounds["standing"].holds(found["standing"].value)  # 14 stand against 10
    assert not bounds["images"].holds(found["images"].value)  # 200 are not 500
    # 220 passes at rate 1, against 190 at rate 2 and 10 at rate 1.
    assert "ideal 2.10 x" in found["ratio"].shown
    assert found["forwards"].value == pytest.approx(100 * 200 / 240)
    assert json.loads((tmp_path / "lines.jsonl").read_text())["ratio"] == theirs
    assert "ours 200 forwards and 200 backwards (95 % in bfloat16)" in found["forwards"].shown


def test_nothing_is_timed_in_the_short_form(tmp_path):
    for item in (speed_attacks.pair_speed, speed_attacks.step_speed):
        with pytest.raises(CannotRunError, match="times nothing"):
            next(item.measure(Context(tmp_path, short=True)))


# Memory


def test_memory_that_grows_or_shrinks_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(speed_memory, "write_suite", lambda folder, classes: classes)
    peaks = {(10, 1000): 1000.0, (10, 10_000): 1101.0, (1000, 1000): 899.0, (1000, 10_000): 2000.0}
    monkeypatch.setattr(speed_memory, "peak_memory", lambda suite, samples, out: peaks[suite, samples])
    item = speed_memory.evaluation_memory
    found = {figure.claim: figure.value for figure in item.measure(Context(tmp_path))}
    bounds = {claim.name: claim.bound for claim in item.claims}
    assert found == pytest.approx({"samples": 10.1, "classes": 10.1, "both": 100.0})
    assert not bounds["samples"].holds(found["samples"])
    assert not bounds["classes"].holds(found["classes"])


def test_the_peak_lies_between_what_is_held_and_what_the_system_books():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    held = pages * resource.getpagesize() / 2**20
    booked = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert 0.99 * held <= speed_memory.own_peak() <= 1.01 * booked


@pytest.mark.slow
def test_a_child_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match=r"nowhere\.yaml"):
        speed_memory.peak_memory(tmp_path / "nowhere.yaml", 4, tmp_path / "out")
