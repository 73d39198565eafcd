"""Our attacks beside those of other libraries: how much faster, by how many passes, and what stands in the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.attack_race import Race
from benchmarks.attack_speed import EPS, open_pair, printed, run_pair, run_steps

from acceptance.claims import Bound, CannotRunError, Claim, Context, Figure, at_least, at_most, exactly, item
from acceptance.speed_tuned import CIFAR10, DATA, TECOA, tuned, weights_of
from acceptance.spine_vision import NAME, write_weights
from ironclip.files import write_atomically
from ironclip.models.sources import load_model

SAMPLES = 500
STEPS, BATCH = 10, 32
MODULES = ("benchmarks.attack_speed", "benchmarks.attack_race", "acceptance.peers")
PEERS = "acceptance/requirements-peers.txt"
SETTING = f"{NAME}, random weights, {BATCH} images, {STEPS} iterations"
REPORTED = {
    "stock": f"APGD-CE-{STEPS}, pyautoattack on stock open_clip",
    "foolbox": f"PGD-{STEPS}, foolbox",
    "torchattacks": f"PGD-{STEPS}, torchattacks",
}


def ratio_of(race: Race) -> str:
    """Say how a race ended, beside its ideal."""
    ours, theirs = (sum(pair[side].seconds for pair in race.laps) for side in (0, 1))
    shown = f"{race.ratio:.2f} x, laps {min(race.ratios):.2f} to {max(race.ratios):.2f}; ideal {race.ideal:.2f} x"
    took = f"{ours:.0f} s against {theirs:.0f} s of {race.peer}, batches {race.batches[0]} and {race.batches[1]}"
    return f"{shown} ({took}, load {race.load:.1f})"


def passes_of(race: Race) -> str:
    """Say what both sides passed through the model, and which share of ours ran in bfloat16."""
    (forwards, backwards), (their_forwards, their_backwards) = race.passes(0), race.passes(1)
    low = sum(part.get("bfloat16", 0) for ours, _ in race.laps for part in (ours.forwards, ours.backwards))
    shown = f"ours {forwards:,} forwards and {backwards:,} backwards ({100 * low / (forwards + backwards):.0f} % in "
    return f"{shown}bfloat16), {race.peer} {their_forwards:,} and {their_backwards:,}"


def more_forwards(race: Race) -> float:
    """Return our forwards in percent of the other's."""
    return 100 * race.passes(0)[0] / race.passes(1)[0]


def keep_lines(context: Context, lines: list[str]) -> None:
    """Leave what the benchmark would print in the item's folder, for the table of docs/performance.md."""
    context.work.mkdir(parents=True, exist_ok=True)
    write_atomically(context.work / "lines.jsonl", "".join(f"{line}\n" for line in lines).encode())


@item(
    "pair_speed",
    claims=[
        Claim("images", f"`pair` on the tuned `tiny`, {EPS}, CIFAR-10: images", exactly(SAMPLES)),
        Claim("ratio", "… times as fast as the same attacks of pyautoattack (median of five laps)", at_least(2.2, "x")),
        Claim("forwards", "… our forwards, padding and verification included, of pyautoattack's (reported)", Bound()),
        Claim("standing", "… robust images more than under pyautoattack's", at_most(2)),
    ],
    modules=MODULES,
    files=[*CIFAR10, PEERS],
    state=lambda: weights_of(TECOA),
)
def pair_speed(context: Context) -> Iterator[Figure]:
    """Each lap is kept as soon as it is done."""
    if context.short:
        raise CannotRunError("the short form times nothing: it runs beside other work")
    classifier, game = open_pair(str(tuned(TECOA)), SAMPLES, EPS, DATA)
    race = run_pair(classifier, game, kept=context.work / "laps.json")
    keep_lines(context, [printed(race, "pair", TECOA)])
    yield Figure("images", sum(race.images))
    yield Figure("ratio", race.ratio, ratio_of(race))
    yield Figure("forwards", more_forwards(race), f"{more_forwards(race):.0f} %: {passes_of(race)}")
    ours, theirs = race.standing
    yield Figure("standing", ours - theirs, f"ours {ours}, pyautoattack {theirs} of {sum(race.images)} stand")


@item(
    "step_speed",
    claims=[
        Claim("ratio", f"{SETTING}, where nothing breaks: times as fast as pyautoattack", at_least(2.2, "x")),
        Claim("forwards", "… our forwards, verification included, of pyautoattack's (reported)", Bound()),
        *(Claim(name, f"… {peer} (reported)", Bound(unit="x")) for name, peer in REPORTED.items()),
    ],
    modules=[*MODULES, "acceptance.spine_vision"],
    files=[PEERS],
)
def step_speed(context: Context) -> Iterator[Figure]:
    """All images stand on both sides, so both do the same iterations."""
    if context.short:
        raise CannotRunError("the short form times nothing: it runs beside other work")
    with TemporaryDirectory() as folder:
        write_weights(Path(folder))
        model, stock = (load_model(f"local-dir:{folder}", fast=fast) for fast in (True, False))
        first, *others = races = run_steps(model, stock, images=BATCH, steps=STEPS)
    keep_lines(context, [printed(race, "steps", f"{NAME} with random weights") for race in races])
    yield Figure("ratio", first.ratio, ratio_of(first))
    yield Figure("forwards", more_forwards(first), f"{more_forwards(first):.0f} %: {passes_of(first)}")
    for name, race in zip(REPORTED, others, strict=True):
        yield Figure(name, race.ratio, ratio_of(race))
