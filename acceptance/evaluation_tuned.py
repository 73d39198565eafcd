"""What compaction spares on a tuned model, and how one is opened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from acceptance.claims import SHARED, Bound, CannotRunError, Claim, Context, Figure, at_most, item
from acceptance.methods_natural import TRAINED, tuned
from ironclip.attacks.autoattack import attack_list
from ironclip.attacks.base import Attack
from ironclip.attacks.driver import DriverSettings, run_attack
from ironclip.attacks.objectives import Misclassify
from ironclip.attacks.pgd import PGD
from ironclip.attacks.sequence import Member, run_sequence
from ironclip.attacks.threat_model import ThreatModel
from ironclip.data.order import limit
from ironclip.models.sources import load_classifier
from ironclip.models.zero_shot import Classifier
from ironclip.suites.suite import load_suite

METHOD = "tecoa"
IMAGES = 100
RADII = tuple(f"{quarters}/1020" for quarters in range(2, 25, 2))
PGD_LEAVES = 0.27
SEARCH = torch.bfloat16
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

    def standing(self, members: Sequence[Member], *, seed: int, search: torch.dtype = torch.float32) -> Tensor:
        """Run attacks in their order and return which images stand, `[N]` bool."""
        settings = DriverSettings(search_dtype=search)
        outcome = run_sequence(
            members, self.objective, self.pixels, self.keys, self.threat, seed=seed, settings=settings
        )
        return ~outcome.broken

    def take(self, rows: Tensor) -> Attacked:
        """Return some of the images."""
        keys = tuple(self.keys[row] for row in rows.tolist())
        return replace(self, pixels=self.pixels[rows], labels=self.labels[rows], keys=keys)


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
        raise CannotRunError("needs a tuned model and ten minutes")
    attacked = _at_a_share(open_tuned(IMAGES))
    members = attack_list("standard").members
    rows, spent = torch.arange(len(attacked.labels)), 0
    everywhere = between = 0
    standing = rows
    for member in members:
        few = attacked.take(standing)
        outcome = run_attack(
            member.attack,
            few.objective(member.attack),
            few.pixels,
            few.keys,
            few.threat,
            seed=0,
            settings=DriverSettings(search_dtype=SEARCH),
        )
        spent += int(outcome.forwards.sum())
        survivors = ~outcome.broken
        if not survivors.any():
            raise ArithmeticError(f"{member.label} leaves nothing to count")
        whole = int(outcome.forwards[survivors].max())
        everywhere, between = everywhere + whole * len(rows), between + whole * len(standing)
        standing = standing[survivors]
    yield Figure("share", 100 * len(standing) / len(rows), f"{len(standing)} of {len(rows)} at {attacked.threat.eps}")
    yield Figure("forwards", 100 * spent / everywhere, f"{spent:,} of {everywhere:,}: {100 * spent / everywhere:.1f} %")
    yield Figure("between", 100 * spent / between, f"{spent:,} of {between:,}: {100 * spent / between:.1f} %")


def _at_a_share(attacked: Attacked) -> Attacked:
    """Choose the smallest radius at which PGD-20 leaves no more than what is asked for; the list leaves a little less.

    Raises:
        CannotRunError: It leaves more at all of them.
    """
    for eps in RADII:
        game = replace(attacked, threat=ThreatModel(norm="linf", eps=eps))
        left = game.standing([Member("PGD", PGD(steps=20, loss="margin"))], seed=0, search=SEARCH)
        if left.double().mean() <= PGD_LEAVES:
            return game
    raise CannotRunError(f"PGD-20 leaves more than {PGD_LEAVES:.0%} at all of {', '.join(RADII)}")
