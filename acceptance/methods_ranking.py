"""Attack what the methods made of the bundled model, and say which differences are more than chance."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from acceptance.claims import Bound, CannotRunError, Claim, Context, Figure, Item, at_least, exactly, item
from acceptance.methods_natural import DATA, KEPT, SEEDS, TINY, TRAINED, sealed, tuned, weights_of
from acceptance.store import key_of, stored_path
from ironclip.attacks.autoattack import AttackList, attack_list
from ironclip.attacks.base import ATTACKS, Attack
from ironclip.attacks.threat_model import ThreatModel
from ironclip.evaluation.aggregate import AggregateRow, verdicts
from ironclip.evaluation.comparison import Contest, contest, contests
from ironclip.evaluation.evaluate import EvaluationRequest, evaluate_suite
from ironclip.evaluation.store import RunStore
from ironclip.methods.base import METHODS, Pass

ORIGINAL = "original"
SETS = ("cifar10", "tiny-imagenet", "caltech101")
UNSEEN = ("tiny-imagenet-unseen", "tiny-imagenet-unseen-20way", "caltech101-unseen", "caltech101-unseen-20way")
FURTHER = ("cifar10", "caltech101", "tiny-imagenet-unseen-20way", "caltech101-unseen-20way")
TUNED_FOR = ThreatModel(norm="linf", eps="2/255")
OTHERS = (ThreatModel(norm="linf", eps="4/255"), ThreatModel(norm="l2", eps="64/255"))
PGD = ATTACKS.create("pgd", {"steps": 20})
IMAGES, FEW = 1000, 200
FILES = (*(f"../shared/data/{name}/test-*.tar.gz" for name in ("cifar10", "tiny_imagenet", "caltech101")), TINY)
REPORTED = Bound()
"""No threshold: the plan asks for the figure as measured."""
KEEPS_CLEAN = ("pmg_aft", "agft", "ucat")
"""Methods whose papers say that they keep more clean accuracy than TeCoA."""


def adversarial(name: str) -> bool:
    """Say whether a method attacks images while it trains."""
    return bool(METHODS.create(name).needs & {Pass.STUDENT_ADV, Pass.STUDENT_ADV_PATCHES, Pass.TEACHER_ADV})


def evaluate(name: str, seed: int, source: str, out: Path) -> None:
    """Evaluate a model; of the first seed also at twice the radius, in L2, and by the pair on fewer images."""
    plans: list[tuple[tuple[str, ...], tuple[Attack | AttackList, ...], tuple[ThreatModel, ...], int]] = [
        (SETS + UNSEEN, (PGD,), (TUNED_FOR,), IMAGES)
    ]
    if seed == 0:
        plans += [(FURTHER, (PGD,), OTHERS, IMAGES), (SETS, (attack_list("pair"),), (TUNED_FOR,), FEW)]
    for datasets, attacks, threats, images in plans:
        evaluate_suite(
            EvaluationRequest(
                model=source,
                name=name,
                suite="natural",
                data_root=DATA,
                datasets=datasets,
                attacks=attacks,
                threats=threats,
                # Another number of images is another request, and so another folder.
                out=out if images == IMAGES else out.with_name(f"{out.name}-pair"),
                limit=images,
                search_dtype="bfloat16",
                command=("acceptance", "natural_methods", name),
            )
        )


def evaluation_of(name: str) -> Item:
    """Make the item that evaluates one method, or the original."""
    seeds = SEEDS if name != ORIGINAL else (0,)

    @item(
        f"attack_{name}",
        claims=(
            Claim(
                "sealed",
                f"{name}: models evaluated as committed and sealed before a test image was read",
                exactly(len(seeds)),
            ),
            Claim("complete", f"{name}: units without a verdict for every image", exactly(0)),
            Claim("invalid", f"{name}: adversarial images outside ball or box", exactly(0)),
        ),
        modules=("ironclip.evaluation.evaluate", "ironclip.attacks.pgd", "ironclip.attacks.autoattack"),
        files=FILES,
        state=(lambda: "original") if name == ORIGINAL else (lambda: weights_of(name)),
    )
    def evaluation(context: Context) -> Iterator[Figure]:
        if context.short:
            raise CannotRunError("it needs the tuned models")
        commit = "" if name == ORIGINAL else sealed(name, context.work)
        for seed in seeds:
            source = "tiny" if name == ORIGINAL else str(tuned(name, seed))
            evaluate(name, seed, source, context.work / name / f"seed-{seed}")
        yield Figure("sealed", len(seeds), f"{len(seeds)} models; recipes of {commit[:12]}" if commit else "1 model")
        rows = [row for store in _stores(context.work / name) for row in map(store.aggregate, store.units())]
        partial = sum(row.coverage != "complete" for row in rows)
        yield Figure("complete", partial, f"{len(rows)} units, {partial} incomplete")
        yield Figure("invalid", sum(row.totals.n_invalid for row in rows))

    return evaluation


def _stores(folder: Path) -> list[RunStore]:
    return [RunStore.open(run) for run in sorted(folder.glob("seed-*"))]


EVALUATED = {name: evaluation_of(name) for name in (ORIGINAL, *TRAINED)}


def evaluated(name: str, seed: int) -> RunStore:
    """Return the evaluation of a seed under the key of now.

    Raises:
        CannotRunError: It is not there.
    """
    one = EVALUATED[name]
    folder = stored_path(KEPT, one, key_of(one)).with_suffix("") / name / f"seed-{seed}"
    if not (folder / "run.json").is_file():
        raise CannotRunError(f"attack_{name} has not been run")
    return RunStore.open(folder)


def _unit(store: RunStore, dataset: str) -> str:
    """Return the unit at the radius tuned for."""
    records = {unit: store.record(unit) for unit in store.units()}
    return next(
        unit
        for unit, record in records.items()
        if (record.dataset, record.threat.norm, record.threat.eps) == (dataset, TUNED_FOR.norm, TUNED_FOR.eps)
    )


def answers(name: str, dataset: str, *, clean: bool) -> npt.NDArray[np.bool_]:
    """Return who is right: `[S, N]` of a method's seeds, `[N]` of the original; in one order of images.

    Raises:
        CannotRunError: An evaluation is missing.
        ValueError: Two seeds saw other images.
    """
    rows, ids = [], set()
    for seed in SEEDS if name != ORIGINAL else (0,):
        store = evaluated(name, seed)
        unit = _unit(store, dataset)
        _, clean_right, robust = verdicts(store.read_unit(unit), store.record(unit))
        rows.append(clean_right if clean else robust)
        ids.add(store.record(unit).sample_ids)
    if len(ids) != 1:
        raise ValueError(f"the seeds of {name} were not evaluated on the same images")
    return rows[0] if name == ORIGINAL else np.stack(rows)


RANKED = tuple(name for name in TRAINED if adversarial(name))


def _ranking_state() -> str:
    return " ".join(key_of(EVALUATED[name]) for name in EVALUATED)


@item(
    "ranking",
    claims=(
        *(
            Claim(
                f"above {name}",
                f"CIFAR-10, 2/255: {name} above the original, lower end of the interval",
                at_least(1e-9, "points"),
            )
            for name in RANKED
        ),
        *(
            Claim(
                f"{kind} {dataset}",
                f"{dataset}, {kind}: pairs of methods of which one beats the other (Holm)",
                REPORTED,
            )
            for dataset in SETS
            for kind in ("clean", "robust")
        ),
        *(
            Claim(f"keeps {name}", f"CIFAR-10, clean: {name} above tecoa (its paper: above)", REPORTED)
            for name in KEEPS_CLEAN
        ),
        Claim("calibration", "CIFAR-10, clean: ECE of ucat minus that of tecoa (its paper: below 0)", REPORTED),
    ),
    modules=("ironclip.evaluation.comparison", "ironclip.evaluation.aggregate"),
    state=_ranking_state,
)
def ranking(context: Context) -> Iterator[Figure]:
    """Compare every pair of methods on the same images, by seeds and images together."""
    if context.short:
        raise CannotRunError("it needs the tuned models")
    original = answers(ORIGINAL, "cifar10", clean=False)
    for name in RANKED:
        found = contest(name, answers(name, "cifar10", clean=False), ORIGINAL, original)
        yield Figure(f"above {name}", 100 * found.low, points(found))
    for dataset in SETS:
        for kind in ("clean", "robust"):
            table = contests({name: answers(name, dataset, clean=kind == "clean") for name in RANKED})
            yield Figure(f"{kind} {dataset}", sum(one.winner is not None for one in table), winners(table))
    for name in KEEPS_CLEAN:
        found = contest(name, answers(name, "cifar10", clean=True), "tecoa", answers("tecoa", "cifar10", clean=True))
        yield Figure(f"keeps {name}", 100 * found.difference, points(found))
    errors = {name: [_clean_ece(name, seed) for seed in SEEDS] for name in ("ucat", "tecoa")}
    means = {name: float(np.mean(values)) for name, values in errors.items()}
    shown = ", ".join(f"{name} {means[name]:.4f} ± {np.std(values, ddof=1):.4f}" for name, values in errors.items())
    yield Figure("calibration", means["ucat"] - means["tecoa"], shown)


def points(found: Contest) -> str:
    """Say a difference in points, with its interval and where its error comes from."""
    d, low, high = (100 * value for value in (found.difference, found.low, found.high))
    errors = f"seeds {100 * found.seed_error:.1f}, images {100 * found.image_error:.1f}"
    return f"{d:+.1f} points [{low:+.1f}, {high:+.1f}] (standard errors: {errors})"


def winners(table: list[Contest]) -> str:
    """Say who beats whom."""
    beaten = [(one.winner, one.second if one.winner == one.first else one.first) for one in table if one.winner]
    return f"{len(beaten)} of {len(table)}: " + "; ".join(f"{winner} > {loser}" for winner, loser in beaten)


def _clean_ece(name: str, seed: int) -> float:
    store = evaluated(name, seed)
    row: AggregateRow = store.aggregate(_unit(store, "cifar10"))
    if row.calibration is None:
        raise ValueError(f"{name}: {row.uncalibrated}")
    return row.calibration.clean.ece.estimate
