"""The bundled model under attack: as fragile as CLIP is."""

from __future__ import annotations

from collections.abc import Iterator

from acceptance.claims import Claim, Context, Figure, at_most, item
from acceptance.tiny_model import DATA, MODEL, SHIPPED
from ironclip.attacks.pgd import PGD
from ironclip.attacks.threat_model import ThreatModel
from ironclip.evaluation.evaluate import EvaluationRequest, evaluate_suite
from ironclip.report.wording import share

IMAGES = 1000


@item(
    "fragility",
    claims=[Claim("cifar10", f"CIFAR-10, {IMAGES:,} images, PGD-20 at 4/255, adversary at 32 x 32", at_most(5, "%"))],
    modules=["ironclip.evaluation.evaluate", "ironclip.attacks.pgd"],
    files=[
        *SHIPPED,
        "../shared/data/cifar10/test-*.tar.gz",
        "src/ironclip/suites/natural.yaml",
        "src/ironclip/suites/classes/cifar10.yaml",
    ],
)
def fragility(context: Context) -> Iterator[Figure]:
    store = evaluate_suite(
        EvaluationRequest(
            model=MODEL,
            suite="natural",
            data_root=DATA,
            datasets=("cifar10",),
            attacks=(PGD(steps=20),),
            threats=(ThreatModel(norm="linf", eps="4/255"),),
            out=context.work / "run",
            limit=context.pick(IMAGES, 64),
            command=("acceptance", "fragility"),
        )
    )
    (unit,) = store.units()
    row = store.aggregate(unit)
    of = f"{row.totals.n:,} images, {store.record(unit).threat.caption}"
    shown = f"{share(row.robust_accuracy)} of {of}; clean {share(row.clean_accuracy)}"
    value = None if context.short else 100 * row.robust_accuracy.estimate
    yield Figure("cifar10", value, f"the short form: {shown}" if context.short else shown)
