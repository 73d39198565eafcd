"""Lists of attacks: what may not matter to a flag or to a bit of an image, kills included."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from acceptance.claims import Claim, Context, Figure, exactly, item
from acceptance.command_line import IRONCLIP, environment, ironclip, must
from acceptance.spine_exact import DATA, FILES, MODEL, MODULES, SEED, Images, differing, open_images
from ironclip.attacks.apgd import APGD, TargetedAPGD
from ironclip.attacks.autoattack import AttackList
from ironclip.attacks.driver import DriverSettings
from ironclip.attacks.fab import TargetedFAB
from ironclip.attacks.objectives import Misclassify
from ironclip.attacks.sequence import Member, SequenceOutcome, run_sequence
from ironclip.attacks.square import Square
from ironclip.attacks.threat_model import ThreatModel
from ironclip.evaluation.evaluate import EvaluationRequest, evaluate_suite
from ironclip.evaluation.merging import merge
from ironclip.evaluation.rows import INCIDENTAL
from ironclip.evaluation.store import RunStore

THREAT = ThreatModel(norm="linf", eps="1/1020")
"""Small, so that an undefended model keeps some of its images and every attack of the list has work."""
LIST = AttackList(
    "standard in short",
    "Four kinds of attack",
    (
        Member("APGD-CE", APGD(steps=5, restarts=2)),
        Member("APGD-T", TargetedAPGD(steps=3, targets=2)),
        Member("FAB-T", TargetedFAB(steps=3, targets=2)),
        Member("Square", Square(queries=20)),
    ),
)
CODE = [*MODULES, *(f"ironclip.attacks.{name}" for name in ("apgd", "fab", "sequence", "square"))]


def attacked(images: Images, *, tile: int = 64, compact: bool = True) -> SequenceOutcome:
    """Run the list."""
    return run_sequence(
        LIST.members,
        lambda attack: Misclassify(images.classifier, images.labels, loss=attack.loss),
        images.pixels,
        images.keys,
        THREAT,
        seed=SEED,
        settings=DriverSettings(tile=tile, compact=compact),
    )


@item(
    "lists_identical",
    claims=[
        Claim("tiles", "a list of APGD, APGD-T, FAB-T, Square: samples that differ for tiles 16, 32, 64", exactly(0)),
        Claim("batches", "… for batch sizes 1, 100, 200, rounded up to a tile", exactly(0)),
        Claim("order", "… in shuffled order", exactly(0)),
        Claim("compaction", "… with compaction on and off", exactly(0)),
        Claim("shards", "… stored rows and images, for three shards merged", exactly(0)),
    ],
    modules=CODE,
    files=FILES,
)
def lists_identical(context: Context) -> Iterator[Figure]:
    images = open_images(context.pick(200, 32))
    reference = attacked(images)
    right, standing = int((~reference.clean.broken).sum()), int((~reference.broken).sum())
    about = f"of {len(images.keys)} samples; {right - standing} broken, {standing} not"
    if not 0 < standing < right:
        raise ArithmeticError(f"nothing to compare: {about}")

    def figure(claim: str, count: int) -> Figure:
        return Figure(claim, count, f"{count} {about}")

    yield figure("tiles", sum(differing(reference, attacked(images, tile=tile)) for tile in (16, 32)))
    yield figure("batches", sum(differing(reference, attacked(images, tile=tile)) for tile in (1, 100, 200)))
    order = torch.randperm(len(images.keys), generator=torch.Generator().manual_seed(1))
    shuffled, back = attacked(images.take(order), tile=16), torch.argsort(order)
    moved = (shuffled.broken[back] != reference.broken) | (shuffled.member[back] != reference.member)
    bits = shuffled.adversarial[back].view(torch.int32) != reference.adversarial.view(torch.int32)
    yield figure("order", int((moved | bits.flatten(1).any(dim=1)).sum()))
    yield figure("compaction", differing(reference, attacked(images, compact=False)))
    with TemporaryDirectory() as folder:
        stores = [_stored(Path(folder), images, part) for part in (None, 0, 1, 2)]
        merged = merge([store.path for store in stores[1:]], Path(folder) / "merged")
        yield figure("shards", unlike(stores[0], merged))


def _stored(folder: Path, images: Images, part: int | None) -> RunStore:
    """Evaluate the samples, or one of three parts of them."""
    return evaluate_suite(
        EvaluationRequest(
            model=MODEL,
            suite="natural",
            data_root=str(DATA),
            attacks=(LIST,),
            threats=(THREAT,),
            out=folder / f"part-{part}",
            datasets=("cifar10",),
            seed=SEED,
            limit=len(images.keys),
            tile=64 if part is None else 16,
            shard=(0, 1) if part is None else (part, 3),
            save="all",
        )
    )


def unlike(first: RunStore, second: RunStore) -> int:
    """Count samples whose rows or images of two runs are not the same, those that one of them lacks included."""
    found = 0
    for unit in {*first.units(), *second.units()}:
        rows, pictures = [], []
        for store in (first, second):
            table = store.read_unit(unit)
            kept = table.select([name for name in table.column_names if name not in INCIDENTAL])
            rows.append({row["sample_id"]: row for row in kept.to_pylist()})
            pictures.append(store.read_images(unit, store.image_ids(unit)))
        for key in rows[0].keys() | rows[1].keys():
            images = [[side.tobytes() for side in one[key]] if key in one else None for one in pictures]
            found += rows[0].get(key) != rows[1].get(key) or images[0] != images[1]
    return found


@item(
    "lists_killed",
    claims=[
        Claim("kills", "an evaluation by a list, killed by SIGKILL at five random moments, kills", exactly(5)),
        Claim("same", "… and resumed: samples whose rows or images are not those of a straight run", exactly(0)),
    ],
    modules=[*CODE, "ironclip.cli.evaluate", "ironclip.evaluation.unfinished", "acceptance.command_line"],
    files=FILES,
)
def lists_killed(context: Context) -> Iterator[Figure]:
    kills, images = context.pick(5, 1), context.pick(400, 32)
    place: list[object] = ["--suite", "natural", "--dataset", "cifar10", "--data-root", DATA, "--limit", images]
    game: list[object] = ["--attack", context.pick("pair", "quick"), "--eps", THREAT.eps, "--save", "all"]
    with TemporaryDirectory() as folder:

        def words(out: str) -> list[object]:
            return ["eval", MODEL, *place, *game, "--out", Path(folder) / out]

        began = time.monotonic()
        must(ironclip(*words("straight")))
        whole = time.monotonic() - began
        moments, killed = np.random.default_rng(0).uniform(0.3, 0.9, size=kills) * whole, 0
        for number, moment in enumerate(moments):
            # A run of its own for each kill: one that goes on five times is nearer its end each time.
            killed += _killed([str(word) for word in words(f"killed-{number}")], moment)
            must(ironclip(*words(f"killed-{number}")))
        straight = RunStore.open(Path(folder) / "straight")
        different = sum(unlike(straight, RunStore.open(Path(folder) / f"killed-{number}")) for number in range(kills))
        at = ", ".join(f"{moment:.0f}" for moment in moments)
        yield Figure("kills", None if context.short else killed, f"{killed}, at {at} s of {whole:.0f} s")
        yield Figure("same", different, f"{different} of {kills * images}")


def _killed(words: list[str], moment: float) -> bool:
    """Start a run and kill it at a moment; False if it was done before."""
    with subprocess.Popen(
        [*IRONCLIP, *words], env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            process.kill()
            return True
    return False
