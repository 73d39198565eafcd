"""The main job on natural images, second half: attack four models and compare them image by image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from acceptance.claims import CannotRunError, Claim, Context, Figure, at_least, at_most, below, exactly, item
from acceptance.spine_training import DATA, METHODS, tuned, tuned_weights
from ironclip.attacks.base import ATTACKS
from ironclip.attacks.threat_model import ThreatModel
from ironclip.evaluation.aggregate import verdicts
from ironclip.evaluation.evaluate import EvaluationRequest, evaluate_suite
from ironclip.evaluation.intervals import PairedDifference, paired_difference
from ironclip.evaluation.store import RunStore

ORIGINAL = "original"
TRIAL = "local-dir:../shared/models/tiny-trial"
SETS = ("cifar10", "tiny-imagenet", "caltech101")
UNSEEN = ("tiny-imagenet-unseen", "tiny-imagenet-unseen-20way", "caltech101-unseen", "caltech101-unseen-20way")
EPS = ("1/255", "2/255", "4/255")
IMAGES = 1000


@item(
    "natural_table",
    claims=(
        Claim("tecoa cifar10", "CIFAR-10, 2/255: tecoa above the original", at_least(20, "points")),
        Claim(
            "fare cifar10",
            "CIFAR-10, 2/255: fare above the original, lower end of the interval",
            at_least(1e-9, "points"),
        ),
        Claim(
            "tecoa caltech101",
            "Caltech-101, 2/255: tecoa above the original, lower end of the interval",
            at_least(1e-9, "points"),
        ),
        Claim("clean loss tecoa cifar10", "CIFAR-10, clean: what tecoa loses", at_most(5, "points")),
        Claim("clean loss fare cifar10", "CIFAR-10, clean: what fare loses", at_most(5, "points")),
        Claim("clean loss tecoa caltech101", "Caltech-101, clean: what tecoa loses", at_most(5, "points")),
        Claim("clean loss fare caltech101", "Caltech-101, clean: what fare loses", at_most(5, "points")),
        Claim(
            "clean gain cifar10",
            "CIFAR-10, under attack: the most that clean fine-tuning gains at any eps",
            at_most(3, "points"),
        ),
        Claim(
            "clean gain caltech101",
            "Caltech-101, under attack: the most that clean fine-tuning gains at any eps",
            at_most(3, "points"),
        ),
        Claim("original at 4/255", "CIFAR-10, 4/255: robust accuracy of the original", below(4, "%")),
        Claim(
            "complete",
            f"{IMAGES:,} test images a set, model and eps, all with a verdict (units that have not)",
            exactly(0),
        ),
        Claim("invalid", "adversarial images outside ball or box", exactly(0)),
    ),
    modules=("ironclip.evaluation.evaluate", "ironclip.attacks.pgd"),
    files=(
        *(f"../shared/data/{name}/test-*.tar.gz" for name in ("cifar10", "tiny_imagenet", "caltech101")),
        "../shared/models/tiny-trial/*",
    ),
    state=tuned_weights,
)
def table(context: Context) -> Iterator[Figure]:
    """Evaluate the four models under PGD-20 at three radii and compare them on the same images."""
    if context.short:
        raise CannotRunError("it needs the tuned models of natural_training")
    sources = {ORIGINAL: TRIAL, **{method: str(tuned(method)) for method in METHODS}}
    stores = {name: _evaluate(name, source, context.work / name) for name, source in sources.items()}
    tecoa, fare = (_compare(stores, method, "cifar10", "2/255") for method in ("tecoa", "fare"))
    yield Figure("tecoa cifar10", 100 * tecoa.difference, _points(tecoa))
    yield Figure("fare cifar10", 100 * fare.low, _points(fare))
    caltech = _compare(stores, "tecoa", "caltech101", "2/255")
    yield Figure("tecoa caltech101", 100 * caltech.low, _points(caltech))
    for method in ("tecoa", "fare"):
        for dataset in ("cifar10", "caltech101"):
            lost = _compare(stores, method, dataset, "2/255", clean=True)
            yield Figure(f"clean loss {method} {dataset}", -100 * lost.difference, _points(lost))
    for dataset in ("cifar10", "caltech101"):
        gains = {eps: _compare(stores, "clean", dataset, eps) for eps in EPS}
        most = max(gains, key=lambda eps: gains[eps].difference)
        yield Figure(f"clean gain {dataset}", 100 * gains[most].difference, f"{most}: {_points(gains[most])}")
    units = {name: {unit: store.aggregate(unit) for unit in store.units()} for name, store in stores.items()}
    weakest = units[ORIGINAL][_unit(stores[ORIGINAL], "cifar10", "4/255")].robust_accuracy
    yield Figure(
        "original at 4/255",
        100 * weakest.estimate,
        f"{100 * weakest.estimate:.1f} % [{100 * weakest.low:.1f}, {100 * weakest.high:.1f}]",
    )
    rows = [row for found in units.values() for row in found.values()]
    partial = [row for row in rows if row.coverage != "complete"]
    yield Figure("complete", len(partial), f"{len(rows)} units, {len(partial)} incomplete")
    yield Figure("invalid", sum(row.totals.n_invalid for row in rows))


def _evaluate(name: str, source: str, out: Path) -> RunStore:
    """Evaluate a model: three sets at three radii; the unseen classes at the radius tuned for."""
    for datasets, radii in ((SETS, EPS), (UNSEEN, ("2/255",))):
        store = evaluate_suite(
            EvaluationRequest(
                model=source,
                name=name,
                suite="natural",
                data_root=DATA,
                datasets=datasets,
                attacks=(ATTACKS.create("pgd", {"steps": 20}),),
                threats=tuple(ThreatModel(norm="linf", eps=eps) for eps in radii),
                out=out,
                limit=IMAGES,
                search_dtype="bfloat16",
                verdicts=False,  # the spine asks for accuracies; `ironclip diagnose` looks at what is stored
                command=("acceptance", "natural_table", name),
            )
        )
    return store


def _unit(store: RunStore, dataset: str, eps: str) -> str:
    return next(u for u in store.units() if (r := store.record(u)).dataset == dataset and r.threat.eps == eps)


def _right(store: RunStore, dataset: str, eps: str, *, clean: bool) -> npt.NDArray[np.bool_]:
    """Return who is right, in the order of sample ids."""
    unit = _unit(store, dataset, eps)
    _, clean_right, robust = verdicts(store.read_unit(unit), store.record(unit))
    return clean_right if clean else robust


def _compare(
    stores: dict[str, RunStore], method: str, dataset: str, eps: str, *, clean: bool = False
) -> PairedDifference:
    """Compare a tuned model with the original on the same images."""
    records = [stores[name].record(_unit(stores[name], dataset, eps)) for name in (method, ORIGINAL)]
    if records[0].sample_ids != records[1].sample_ids:
        raise ValueError("the models were not evaluated on the same images")
    ours, theirs = (_right(stores[name], dataset, eps, clean=clean) for name in (method, ORIGINAL))
    return paired_difference(
        int((ours & theirs).sum()),
        int((ours & ~theirs).sum()),
        int((~ours & theirs).sum()),
        int((~ours & ~theirs).sum()),
    )


def _points(difference: PairedDifference) -> str:
    d, low, high = (100 * value for value in (difference.difference, difference.low, difference.high))
    return f"{d:+.1f} points [{low:+.1f}, {high:+.1f}]"
