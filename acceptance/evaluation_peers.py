"""Our attacks beside pyautoattack, foolbox and torchattacks, on the same images, model and budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from acceptance import peers
from acceptance.claims import CannotRunError, Claim, Context, Figure, at_least, at_most, exactly, item
from acceptance.evaluation_affine import Problem, falls_short
from acceptance.evaluation_tuned import EPS, Attacked, open_tuned
from acceptance.spine_exact import FILES, MODULES, open_images
from ironclip.attacks.autoattack import attack_list
from ironclip.attacks.objectives import Misclassify
from ironclip.attacks.pgd import PGD
from ironclip.attacks.sequence import Member
from ironclip.attacks.square import Square
from ironclip.attacks.threat_model import ThreatModel
from ironclip.evaluation.intervals import paired_difference

CODE = ["acceptance.peers", "acceptance.evaluation_tuned", "ironclip.attacks.autoattack", *MODULES]
STEPS, SHARE = 20, 0.25


def pgd_claims() -> list[Claim]:
    """Say what PGD has to show beside each of the two."""
    found = []
    for name in ("foolbox", "torchattacks"):
        found += [
            Claim(
                f"{name}_zero",
                f"PGD-20, zero start, last iterate: difference of the counts that stand ({name})",
                at_most(2),
            ),
            Claim(
                f"{name}_random", f"… random start: the paired interval of the difference holds 0 ({name})", exactly(1)
            ),
        ]
    return found


def compared_pgd(attacked: Attacked, eps: float) -> Iterator[Figure]:
    """Run PGD here and there."""
    runs: dict[str, Callable[..., Tensor]] = {"foolbox": peers.foolbox_pgd, "torchattacks": peers.torchattacks_pgd}
    for name, run in runs.items():
        for random in (False, True):
            attack = PGD(steps=STEPS, rel_step_size=SHARE, start_at="random" if random else "zero", keep="last")
            ours = attacked.standing([Member("PGD", attack)], seed=0)
            theirs = run(
                attacked.classifier, attacked.pixels, attacked.labels, eps, steps=STEPS, step=SHARE * eps, random=random
            )
            shown = f"ours {int(ours.sum())}, {name} {int(theirs.sum())} of {len(ours)} stand"
            if not random:
                yield Figure(f"{name}_zero", abs(int(ours.sum()) - int(theirs.sum())), shown)
                continue
            both, mine = int((ours & theirs).sum()), int((ours & ~theirs).sum())
            other = int((theirs & ~ours).sum())
            interval = paired_difference(both, mine, other, len(ours) - both - mine - other)
            holds = float(interval.low <= 0 <= interval.high)
            yield Figure(
                f"{name}_random", holds, f"{shown}; [{100 * interval.low:.1f}, {100 * interval.high:.1f}] points"
            )


@item(
    "peers_exact",
    claims=[
        *pgd_claims(),
        Claim("square", "Square, l2, 3 x 8 x 8: the fall that ours misses less what pyautoattack's misses", at_most(0)),
    ],
    modules=CODE,
    files=[*FILES, "acceptance/requirements-peers.txt"],
)
def peers_exact(context: Context) -> Iterator[Figure]:
    """On the model of the spine, at a radius that leaves some of its images standing."""
    with peers.peers():
        images = open_images(context.pick(500, 32))
        threat = ThreatModel(eps="1/1020")
        attacked = Attacked(images.classifier, images.pixels, images.labels, images.keys, threat)
        yield from compared_pgd(attacked, threat.radius)
        problem, game = Problem.made_up(3, 5, side=8, images=8), ThreatModel(norm="l2", eps="1/16")
        queries = context.pick(3000, 200)
        ours = problem.attacked(Square(queries=queries), game)
        missed = falls_short(problem, ours, game)
        standing = ~ours.broken
        found = peers.pyautoattack_square(
            problem.classifier, problem.pixels[standing], problem.labels[standing], game.radius, queries=queries
        )
        again = Misclassify(problem.classifier, problem.labels[standing], loss="margin").evaluate(found).margin
        if again is None or ours.clean.margin is None:
            raise TypeError("a classification objective gives margins")
        clean, worst = -ours.clean.margin[standing].double(), problem.worst(game)[standing]
        theirs = ((-again.double().detach() - worst) / (clean - worst)).mean().item()
        mean = missed.mean().item()
        yield Figure(
            "square", mean - theirs, f"ours {100 * mean:.1f} %, pyautoattack {100 * theirs:.1f} %, {queries:,} queries"
        )


SEEDS = (0, 1, 2)


@item(
    "peers_tuned",
    claims=[
        Claim("images", "images of CIFAR-10, the tuned bundled model", at_least(500)),
        Claim("standard", "robust images under our standard more than under pyautoattack's", at_most(2)),
        *(Claim(f"pair_{seed}", f"… our pair, attack seed {seed}", at_most(2)) for seed in SEEDS),
        *pgd_claims(),
    ],
    modules=CODE,
    files=["../shared/data/cifar10/test-*.tar.gz", "acceptance/requirements-peers.txt"],
)
def peers_tuned(context: Context) -> Iterator[Figure]:
    """On a tuned model; hours, so that each part is kept as soon as it is done."""
    if context.short:
        raise CannotRunError("hours on two cores; the exact comparison runs in short form")
    with peers.peers():
        attacked = open_tuned(500)
        yield Figure("images", len(attacked.labels))
        yield from compared_pgd(attacked, EPS.radius)

        def kept(name: str, make: Callable[[], Tensor]) -> Tensor:
            path = context.work / f"{name}.npy"
            if not path.is_file():
                context.work.mkdir(parents=True, exist_ok=True)
                np.save(path, make().numpy())
            return torch.from_numpy(np.load(path))

        def figure(claim: str, members: Sequence[Member], seed: int, attacks: list[str] | None) -> Figure:
            ours = kept(f"{claim}-ours", lambda: attacked.standing(members, seed=seed))
            theirs = kept(
                f"{claim}-theirs",
                lambda: peers.pyautoattack(
                    attacked.classifier, attacked.pixels, attacked.labels, EPS.radius, seed=seed, attacks=attacks
                ),
            )
            more = int(ours.sum()) - int(theirs.sum())
            return Figure(claim, more, f"ours {int(ours.sum())}, pyautoattack {int(theirs.sum())} of {len(ours)} stand")

        for seed in SEEDS:
            yield figure(f"pair_{seed}", attack_list("pair").members, seed, ["apgd-ce", "apgd-t"])
        yield figure("standard", attack_list("standard").members, 0, None)
