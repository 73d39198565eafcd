"""What a tuned model shows: how much compaction spares, and whether a headline row stands up to more attacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from acceptance.claims import SHARED, Bound, CannotRunError, Claim, Context, Figure, at_least, at_most, item
from acceptance.methods_natural import TRAINED, tuned
from ironclip.attacks.apgd import APGD, TargetedAPGD
from ironclip.attacks.autoattack import attack_list
from ironclip.attacks.base import Attack
from ironclip.attacks.driver import DriverSettings, run_attack
from ironclip.attacks.objectives import Misclassify
from ironclip.attacks.sequence import Member, SequenceOutcome, run_sequence
from ironclip.attacks.threat_model import ThreatModel
from ironclip.data.order import limit
from ironclip.models.sources import load_classifier
from ironclip.models.zero_shot import Classifier
from ironclip.suites.suite import load_suite

METHOD = "tecoa"
EPS = ThreatModel(norm="linf", eps="2/255")
FILES = ["../shared/data/cifar10/test-*.tar.gz"]
MODULES = ["ironclip.attacks.autoattack", "ironclip.attacks.sequence", "ironclip.attacks.apgd"]


@dataclass(frozen=True)
class Attacked:
    """Images `[N, 3, H, W]` with labels and keys, the model, and the game."""

    classifier: Classifier
    pixels: Tensor
    labels: Tensor
    keys: tuple[str, ...]
    threat: ThreatModel

    def objective(self, attack: Attack) -> Misclassify:
        return Misclassify(self.classifier, self.labels, loss=attack.loss)

    def under(self, members: Sequence[Member], *, seed: int = 0, compact: bool = True) -> SequenceOutcome:
        """Run attacks in their order."""
        settings = DriverSettings(compact=compact)
        return run_sequence(members, self.objective, self.pixels, self.keys, self.threat, seed=seed, settings=settings)

    def standing(self, members: Sequence[Member], *, seed: int) -> Tensor:
        """Return which images stand, `[N]` bool."""
        return ~self.under(members, seed=seed).broken


def run_folder() -> Path:
    """Return the run of a tuned model, as `accept methods` left it.

    Raises:
        CannotRunError: There is none.
    """
    if METHOD not in TRAINED:
        raise CannotRunError(f"there is no recipe natural-methods/{METHOD}")
    run = tuned(METHOD, 0)
    if not (run / "result.json").is_file():
        raise CannotRunError(f"no tuned model yet: python -m acceptance.run methods --only train_{METHOD}")
    return run


def open_tuned(count: int) -> Attacked:
    """Take the images that `ironclip eval --limit` takes, and the tuned model.

    Raises:
        CannotRunError: There is none.
    """
    run = run_folder()
    info = load_suite("natural", str(SHARED / "data")).entry("cifar10").open()
    dataset = limit(info.dataset, count)
    samples = [dataset[index] for index in range(len(dataset))]
    return Attacked(
        classifier=load_classifier(str(run), info.class_names, info.templates),
        pixels=torch.stack([sample.pixels for sample in samples]),
        labels=torch.tensor([sample.label for sample in samples]),
        keys=tuple(sample.key for sample in samples),
        threat=EPS,
    )


@item(
    "compaction",
    claims=[
        Claim(
            "share", "images robust under `standard`, where this is counted", Bound(at_least=15, at_most=30, unit="%")
        ),
        Claim("forwards", "forwards with compaction, of those of every attack on every sample", at_most(35, "%")),
        Claim("between", "… of those of dropping between attacks only, as AutoAttack does (reported)", Bound(unit="%")),
    ],
    modules=MODULES,
    files=FILES,
)
def compaction(context: Context) -> Iterator[Figure]:
    """The other two counts follow: an attack that does not stop costs every sample what it costs a survivor."""
    if context.short:
        raise CannotRunError("needs a tuned model and an hour")
    attacked = open_tuned(200)
    members = attack_list("standard").members
    rows, spent = torch.arange(len(attacked.labels)), 0
    everywhere = between = 0
    standing = rows
    for member in members:
        outcome = run_attack(
            member.attack,
            attacked.objective(member.attack).take(standing),
            attacked.pixels[standing],
            [attacked.keys[row] for row in standing.tolist()],
            EPS,
            seed=0,
        )
        spent += int(outcome.forwards.sum())
        survivors = ~outcome.broken
        if not survivors.any():
            raise ArithmeticError(f"{member.label} leaves nothing to count")
        whole = int(outcome.forwards[survivors].max())
        everywhere, between = everywhere + whole * len(rows), between + whole * len(standing)
        standing = standing[survivors]
    yield Figure("share", 100 * len(standing) / len(rows), f"{len(standing)} of {len(rows)} at {EPS.eps}")
    yield Figure("forwards", 100 * spent / everywhere, f"{spent:,} of {everywhere:,}: {100 * spent / everywhere:.1f} %")
    yield Figure("between", 100 * spent / between, f"{spent:,} of {between:,}: {100 * spent / between:.1f} %")


HARDER = {
    "pair, seeds 0 to 4": tuple(member for member in attack_list("pair").members),
    "APGD-1000, margin, all targets": (Member("APGD-T", TargetedAPGD(steps=1000, targets=999, loss="margin")),),
    "APGD-1000, margin": (Member("APGD", APGD(steps=1000, loss="margin")),),
}


@item(
    "escalation",
    claims=[
        Claim("ids", "fixed images behind the headline row of a tuned model", at_least(200)),
        Claim(
            "lost", "points that the row loses to harder attacks (more than 1 takes `trusted`)", at_most(1, "points")
        ),
    ],
    modules=MODULES,
    files=FILES,
)
def escalation(context: Context) -> Iterator[Figure]:
    """Evaluation plan 8, point 12, without the peers, which `peers_tuned` compares, and without transfer."""
    if context.short:
        raise CannotRunError("needs a tuned model and an hour")
    attacked = open_tuned(200)
    yield Figure("ids", len(attacked.labels))
    before = attacked.standing(attack_list("standard").members, seed=0)
    left, shown = before.clone(), []
    for name, members in HARDER.items():
        seeds = range(5) if "seeds" in name else range(1)
        for seed in seeds:
            rows = torch.where(left)[0]
            if len(rows):
                keys = tuple(attacked.keys[row] for row in rows.tolist())
                few = Attacked(attacked.classifier, attacked.pixels[rows], attacked.labels[rows], keys, EPS)
                left[rows] = few.standing(members, seed=seed + 1)
        shown.append(f"{name} {int(left.sum())}")
    lost = 100 * (int(before.sum()) - int(left.sum())) / len(before)
    yield Figure("lost", lost, f"{lost:.1f} points; standing {int(before.sum())}, after {', '.join(shown)}")
