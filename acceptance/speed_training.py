"""The training step against the same step as published code does it: equal work, in less time and memory.

On an idle machine of two cores the items take about 45 minutes: a step of TeCoA's or PMG-AFT's published code takes
more than one.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence

from benchmarks.equality import pair
from benchmarks.published import STEPS
from benchmarks.training_step import FAR, Comparison, Setting, compare, extrapolated, largest_class_count, line_of

from acceptance.claims import Bound, CannotRunError, Claim, Context, Figure, at_least, at_most, item
from acceptance.spine_vision import NAME
from ironclip.benchmarking.towers import Speed, measure
from ironclip.models.sources import load_model

BATCH, CLASSES = 32, 200
ROUNDS = 5
STEP = f"{NAME}, batch {BATCH}"
RANDOM = f"open_clip:{NAME}/random?seed=0"
LINES = "steps.json"
"""In an item's work folder: what `python -m benchmarks.training_step` would have printed, for tools/tables.py."""

MODULES = (
    "ironclip.attacks.pgd",
    "ironclip.methods.tecoa",
    "ironclip.methods.pmg_aft",
    "ironclip.methods.fare",
    "ironclip.methods.agft",
)


def refuse_beside_other_work(context: Context) -> None:
    if context.short:
        raise CannotRunError("the short form times nothing: it runs beside other work")


def against(
    method: str, classes: int, baseline: str = "published", *, slow: int | None = None, apart: bool = False
) -> Comparison:
    """Compare a step; a baseline that takes long and is only reported runs `slow` times."""
    setting = Setting(method, NAME, classes, BATCH, "cpu")
    return compare(setting, baseline, rounds=ROUNDS, baseline_rounds=slow or ROUNDS, apart=apart)


def keep(context: Context, found: Sequence[Comparison]) -> None:
    """Leave the figures where tools/tables.py is pointed to."""
    context.work.mkdir(parents=True, exist_ok=True)
    (context.work / LINES).write_text(json.dumps(line_of(list(found)), indent=1) + "\n")


def ratio(claim: str, found: Comparison) -> Figure:
    """Say the ratio with both times, beside its ideal."""
    runs = f"medians of {found.rounds} and {found.baseline_rounds}, load {found.load:.1f}"
    times = f"{found.ours:.2f} s against {found.theirs:.1f} s; {runs}"
    return Figure(claim, found.ratio, f"{found.ratio:.1f} x, ideal {found.ideal:.1f} x ({times})")


def of_ideal(claim: str, found: Comparison) -> Figure:
    """Say the share of the ideal ratio, with both sides' operations and shares of their peaks."""
    share = 100 * found.ratio / found.ideal
    sides = ", ".join(
        f"{name} {operations / 1e12:.2f} TFLOP at {100 * part:.0f} % of {peak / 1e9:.0f} GFLOP/s"
        for name, operations, part, peak in (
            ("ours", found.ours_operations, found.ours_share, found.ours_peak),
            (found.baseline, found.theirs_operations, found.theirs_share, found.theirs_peak),
        )
    )
    return Figure(claim, share, f"{share:.0f} % ({sides})")


def memory(claim: str, found: Comparison) -> Figure:
    """Say our share of the baseline's peak memory."""
    both = f"{found.ours_memory / 1e9:.1f} of {found.theirs_memory / 1e9:.1f} GB"
    return Figure(claim, 100 * found.memory_share, f"{100 * found.memory_share:.0f} % ({both})")


@item(
    "training_equal",
    claims=[
        Claim(
            method,
            f"{method}: gradients of our step and of the published operations, float32 (‖difference‖/‖gradient‖)",
            at_most(1e-3),
        )
        for method in STEPS
    ],
    modules=["benchmarks.equality", *MODULES],
)
def training_equal(context: Context) -> Iterator[Figure]:
    source, batch = context.pick((RANDOM, 8), ("tiny", 4))
    model = load_model(source)
    for method in STEPS:
        loss, gradient = pair(method, model, batch=batch, classes=10).gaps()
        yield Figure(method, gradient, f"{gradient:.1e}, of the loss {loss:.1e} ({model.spec.origin}, {batch} images)")


@item(
    "training_tecoa",
    claims=[
        Claim("ratio", f"TeCoA's step, {STEP}, {CLASSES} classes: times as fast as published", at_least(18, "x")),
        Claim("memory", "… our peak memory, of the published operations'", at_most(35, "%")),
        Claim("ideal", "… share of its ideal ratio: counted operations x measured peaks", at_least(80, "%")),
        Claim("classes_100", "… with 100 classes (reported)", Bound()),
        Claim("classes_50", "… with 50 classes (reported)", Bound()),
        Claim("far", f"… with {FAR} classes, extrapolated from these, not measured (reported)", Bound()),
    ],
    modules=["benchmarks.training_step", *MODULES],
)
def training_tecoa(context: Context) -> Iterator[Figure]:
    refuse_beside_other_work(context)
    found = against("tecoa", CLASSES)
    yield ratio("ratio", found)
    yield memory("memory", found)
    yield of_ideal("ideal", found)
    fewer = {classes: against("tecoa", classes, slow=1) for classes in (100, 50)}
    for classes, one in fewer.items():
        yield ratio(f"classes_{classes}", one)
    whole = [fewer[50], fewer[100], found]
    keep(context, whole)
    line = extrapolated(whole)
    yield Figure(
        "far", line["ratio"], f"{line['ratio']:.0f} x: {line['theirs']:.0f} s a step on a line of three counts"
    )


@item(
    "training_pmg_aft",
    claims=[
        Claim(
            "ratio",
            f"PMG-AFT's step, {STEP}, as many classes as published fit into memory: times as fast",
            at_least(15, "x"),
        ),
        Claim("memory", "… our peak memory, of the published operations' (reported)", Bound(unit="%")),
        Claim("ideal", "… share of its ideal ratio", at_least(80, "%")),
    ],
    modules=["benchmarks.training_step", *MODULES],
)
def training_pmg_aft(context: Context) -> Iterator[Figure]:
    refuse_beside_other_work(context)
    found = against("pmg_aft", largest_class_count("pmg_aft", model=NAME, batch=BATCH), apart=True)
    keep(context, [found])
    named = ratio("ratio", found)
    yield Figure("ratio", named.value, f"{found.classes} classes: {named.shown}")
    yield memory("memory", found)
    yield of_ideal("ideal", found)


@item(
    "training_fare",
    claims=[
        Claim("ratio", f"FARE's step (PGD-10), {STEP}: times as fast as published", at_least(2.2, "x")),
        Claim("ideal", "… share of its ideal ratio", at_least(80, "%")),
    ],
    modules=["benchmarks.training_step", *MODULES],
)
def training_fare(context: Context) -> Iterator[Figure]:
    refuse_beside_other_work(context)
    found = against("fare", 1)
    keep(context, [found])
    yield ratio("ratio", found)
    yield of_ideal("ideal", found)


@item(
    "training_agft",
    claims=[
        Claim("ratio", f"AGFT's step, {STEP}, {CLASSES} classes: times as fast as published", at_least(2, "x")),
        Claim("ideal", "… share of its ideal ratio", at_least(80, "%")),
    ],
    modules=["benchmarks.training_step", *MODULES],
)
def training_agft(context: Context) -> Iterator[Figure]:
    refuse_beside_other_work(context)
    found = against("agft", CLASSES)
    keep(context, [found])
    yield ratio("ratio", found)
    yield of_ideal("ideal", found)


@item(
    "training_tuned",
    claims=[
        Claim(
            "tecoa",
            f"TeCoA's step, {STEP}, {CLASSES} classes: times as fast as published with text cached and autocast",
            at_least(1.6, "x"),
        ),
        Claim("tecoa_ideal", "… share of its ideal ratio", at_least(80, "%")),
        Claim("fare", "FARE's step: times as fast as published with autocast", at_least(1.6, "x")),
        Claim("fare_ideal", "… share of its ideal ratio", at_least(80, "%")),
    ],
    modules=["benchmarks.training_step", *MODULES],
)
def training_tuned(context: Context) -> Iterator[Figure]:
    refuse_beside_other_work(context)
    found = []
    for method, classes in (("tecoa", CLASSES), ("fare", 1)):
        found.append(against(method, classes, "tuned"))
        yield ratio(method, found[-1])
        yield of_ideal(f"{method}_ideal", found[-1])
    keep(context, found)


@item(
    "tower_share",
    claims=[
        # A share above 100 % would mean that the peak was measured wrongly.
        Claim(
            "share",
            f"{STEP}: forward + input gradient, share of the measured bfloat16 peak",
            Bound(at_least=80, at_most=100, unit="%"),
        ),
        Claim("float32", "… times as fast as stock float32", at_least(2.3, "x")),
        Claim("tiny", f"`tiny`, batch {BATCH}: share of the peak", Bound(at_least=65, at_most=100, unit="%")),
    ],
    modules=["ironclip.benchmarking.towers", "ironclip.models.sources"],
)
def tower_share(context: Context) -> Iterator[Figure]:
    refuse_beside_other_work(context)
    large, tiny = (tower_speed(source) for source in (RANDOM, "tiny"))
    yield share("share", large)
    stock = f"{large.over_float32:.2f} x ({large.fast:.2f} s against {large.stock_float32:.2f} s)"
    yield Figure("float32", large.over_float32, stock)
    yield share("tiny", tiny)


def tower_speed(source: str) -> Speed:
    """Measure the image tower of a model against a copy of it as stock open_clip runs it."""
    model = load_model(source)
    return measure(model, copy.deepcopy(model.visual), batch=BATCH, rounds=ROUNDS)


def share(claim: str, speed: Speed) -> Figure:
    """Say the share of the peak, and of which product that peak is."""
    shape = " x ".join(map(str, speed.peak_shape))
    rates = f"{speed.operations / speed.fast / 1e9:.0f} of {speed.peak / 1e9:.0f} GFLOP/s, {shape}"
    return Figure(claim, 100 * speed.share, f"{100 * speed.share:.0f} % ({rates}; load {speed.load:.1f})")
