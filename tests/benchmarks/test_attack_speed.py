"""A race of attacks: what is counted, that both sides take turns, and that a side which does less is noticed."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from acceptance.peers import FOLDER, peers
from benchmarks.attack_race import Counted, Game, Lap, Race, Side, best_batches, race, row_operations, run_lap
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import attack_speed
from ironclip.attacks.apgd import APGD
from ironclip.attacks.sequence import Member
from ironclip.attacks.threat_model import ThreatModel
from ironclip.models.zero_shot import FixedClasses

RATES = {"float32": 1.0, "bfloat16": 2.0}


@pytest.fixture
def classifier(tiny_clip):
    weights = F.normalize(torch.randn(5, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    return FixedClasses(tiny_clip().requires_grad_(False), weights, logit_scale=1.0)


def game_of(pixels, label=0):
    return Game(
        pixels, torch.full((len(pixels),), label), tuple(map(str, range(len(pixels)))), ThreatModel(eps="1/255")
    )


def standing_still(classifier, game, batch):
    classifier.logits(game.pixels)
    return game.pixels


def test_rows_and_gradients_are_counted_by_precision(classifier, pixels):
    counted = Counted(classifier)
    leaf = pixels.clone().requires_grad_(True)
    with counted.computing(torch.bfloat16):
        value = counted.logits(leaf).sum()
    torch.autograd.grad(value, leaf)
    plain = counted.logits(pixels)
    assert counted.forwards == {"bfloat16": 4, "float32": 4}
    assert counted.backwards == {"bfloat16": 4}
    torch.testing.assert_close(plain, classifier.logits(pixels), rtol=0, atol=0)


def test_our_attack_passes_what_its_steps_say(classifier, pixels):
    """Seven forwards a row of four steps: clean image, five points, verification; the padding to 16 rows included."""
    predicted = classifier.logits(pixels).argmax(dim=1)
    game = Game(pixels, predicted, tuple("abcd"), ThreatModel(eps=1e-9))
    lap = run_lap(Side(attack_speed.ours(Member("A", APGD(steps=4))), standing_still, classifier), game, 16)
    assert lap.forwards == {"float32": 2 * 16, "bfloat16": 5 * 16}
    assert lap.backwards == {"bfloat16": 4 * 16}
    assert lap.standing == 4


def test_what_stands_is_judged_apart_from_the_attack(classifier, pixels):
    label = int(classifier.logits(pixels)[0].argmin())
    lap = run_lap(Side(standing_still, standing_still, classifier), game_of(pixels[:1], label), 1)
    assert lap.standing == 0  # wrong without any attack
    assert lap.forwards == {"float32": 1}


def test_operations_of_a_row_are_those_of_another_counter(classifier, pixels):
    forward, backward = row_operations(classifier, pixels)
    leaf = pixels.clone().requires_grad_(True)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(classifier.logits(leaf).sum(), leaf)
    assert 4 * (forward + backward) == counter.get_total_flops()
    assert 0 < forward < backward  # attention has two products a forward, four a gradient


def test_sides_take_turns_and_a_stopped_race_goes_on(classifier, pixels, tmp_path):
    turns = []

    def side(name):
        def run(model, game, batch):
            turns.append((name, len(game.labels), batch))
            return game.pixels

        return Side(run, standing_still, classifier)

    game, kept = game_of(pixels), tmp_path / "laps.json"
    settings = {"sizes": (16,), "batches": (16, 32), "rates": RATES}
    race("a", "b", (side("ours"), side("theirs")), game.laps(3)[:1], kept=kept, **settings)
    assert turns == [("ours", 3, 16), ("theirs", 3, 32)]
    found = race("a", "b", (side("ours"), side("theirs")), game.laps(3), kept=kept, **settings)
    assert turns[2:] == [("ours", 1, 16), ("theirs", 1, 32)]
    assert found.images == (3, 1)
    assert len(found.ratios) == 2


def test_the_best_batch_size_is_found_for_each_side(classifier, pixels, monkeypatch):
    now = [0.0]

    def side(costs):
        def short(model, game, batch):
            now[0] += costs[batch]
            return game.pixels

        return Side(standing_still, short, classifier)

    monkeypatch.setattr("benchmarks.attack_race.time.perf_counter", lambda: now[0])
    sides = (side({8: 3, 16: 1, 32: 2}), side({8: 1, 16: 2, 32: 3}))
    assert best_batches(sides, game_of(pixels), (8, 16, 32)) == (16, 8)


def test_figures_of_a_race_follow_from_its_laps():
    laps = tuple(
        (Lap(1.0, {"bfloat16": 20}, {"bfloat16": 10}, 3), Lap(seconds, {"float32": 20}, {"float32": 10}, 2))
        for seconds in (2.0, 3.0, 7.0)
    )
    one = Race(
        attack="a", peer="b", eps="1/255", images=(4, 4, 4), batches=(16, 8), tried=(8, 16), laps=laps,
        operations=((1.0, 2.0), (1.0, 2.0)), rates=RATES, load=0.0,
    )  # fmt: skip
    assert one.ratio == 3.0
    assert one.ideal == 2.0
    assert one.standing == (9, 6)
    assert one.passes(1) == (60, 30)
    line = one.line()
    assert (line["ratio"], line["slowest_ratio"], line["seconds"]) == (3.0, 2.0, [1.0, 3.0])
    json.dumps(line)


def test_nothing_breaks_in_the_game_of_steps(tiny_clip):
    model = tiny_clip()
    weights, game = attack_speed.unbroken(model, 8)
    classifier = FixedClasses(model.requires_grad_(False), weights, logit_scale=1.0)
    lap = run_lap(Side(attack_speed.ours(Member("A", APGD(steps=10))), standing_still, classifier), game, 16)
    assert lap.standing == 8
    leaf = game.pixels.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(classifier.logits(leaf), game.labels), leaf)
    assert (gradient != 0).float().mean() > 0.99  # a saturated softmax would make passes of zeros


def test_a_side_that_stops_early_is_no_race(tiny_clip, monkeypatch, tmp_path):
    def broken(classifier, game, batch):
        return 1 - game.pixels

    monkeypatch.setattr(attack_speed, "measured_rates", lambda classifier, rows: RATES)
    for name in ("pyautoattack_apgd", "foolbox_pgd", "torchattacks_pgd"):
        monkeypatch.setattr(attack_speed, name, lambda steps: standing_still)
    monkeypatch.setattr(attack_speed, "ours", lambda *members: broken)
    monkeypatch.setattr("acceptance.peers.FOLDER", tmp_path)
    weights, game = attack_speed.unbroken(tiny_clip(), 4)
    flipped = Game(game.pixels, torch.ones_like(game.labels), game.keys, game.threat)
    monkeypatch.setattr(attack_speed, "unbroken", lambda model, images: (weights, flipped))
    with pytest.raises(ArithmeticError, match="all should"):
        attack_speed.run_steps(tiny_clip(), tiny_clip(fast=False), images=4, steps=2, rounds=1)


@pytest.mark.skipif(not FOLDER.is_dir(), reason="the peers are not in runs/peers: see acceptance/peers.py")
def test_peers_do_as_many_steps_as_ours(tiny_clip):
    """Eleven forwards and as many gradients for ten steps of pyautoattack, and one forward to begin with."""
    model = tiny_clip()
    weights, game = attack_speed.unbroken(model, 4)
    classifier = FixedClasses(model.requires_grad_(False), weights, logit_scale=1.0)
    with peers():
        for run, forwards, backwards in (
            (attack_speed.pyautoattack_apgd(10), 12, 11),
            (attack_speed.foolbox_pgd(10), 10, 10),
            (attack_speed.torchattacks_pgd(10), 10, 10),
        ):
            lap = run_lap(Side(run, run, classifier), game, 2)
            assert lap.forwards == {"float32": 4 * forwards}
            assert lap.backwards == {"float32": 4 * backwards}
            assert lap.standing == 4


def test_it_prints_a_json_line_a_race(monkeypatch, capsys):
    lap = Lap(1.0, {"float32": 1}, {"float32": 1}, 1)
    one = Race(
        attack="a", peer="b", eps="1/255", images=(1,), batches=(16, 8), tried=(8,), laps=((lap, lap),),
        operations=((1.0, 1.0), (1.0, 1.0)), rates=RATES, load=0.0,
    )  # fmt: skip
    monkeypatch.setattr(attack_speed, "load_model", lambda source, fast=True: source)
    monkeypatch.setattr(attack_speed, "run_steps", lambda *models, **settings: [one, one])
    monkeypatch.setattr(sys, "argv", ["attack_speed", "steps", "--images", "1", "--steps", "2"])
    attack_speed.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2
    assert lines[0] | {"laps": None} == lines[1] | {"laps": None}
    assert lines[0]["benchmark"] == "attack_speed"
    assert lines[0]["setting"] == "steps"
    assert lines[0]["laps"] == [[asdict(lap), asdict(lap)]]
    assert {"ratio", "ideal", "processor", "threads"} <= lines[0].keys()
