"""What may not matter: tiles, order, compaction, shards; and what an attack may not touch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from acceptance.claims import SHARED, Claim, Context, Figure, exactly, item
from ironclip.attacks.base import Attack
from ironclip.attacks.driver import DriverSettings, Outcome, run_attack
from ironclip.attacks.objectives import Evaluation, Misclassify
from ironclip.attacks.pgd import PGD
from ironclip.attacks.threat_model import ThreatModel
from ironclip.data.order import limit
from ironclip.evaluation.evaluate import EvaluationRequest, evaluate_suite
from ironclip.evaluation.merging import merge
from ironclip.evaluation.rows import INCIDENTAL
from ironclip.evaluation.store import RunStore
from ironclip.models.sources import load_classifier
from ironclip.models.zero_shot import Classifier
from ironclip.randomness import SampleRandom
from ironclip.suites.suite import load_suite

MODEL = f"local-dir:{SHARED / 'models' / 'tiny-trial'}"
DATA = SHARED / "data"
SAMPLES = 64
SEED = 0
THREAT = ThreatModel(norm="linf", eps="2/255")
MODULES = ["ironclip.evaluation.evaluate", "ironclip.evaluation.merging", "ironclip.attacks.pgd"]
FILES = [
    "../shared/models/tiny-trial/*",
    "../shared/data/cifar10/test-*.tar.gz",
    "src/ironclip/suites/natural.yaml",
    "src/ironclip/suites/classes/cifar10.yaml",
]


@dataclass(frozen=True)
class Images:
    """Images of CIFAR-10's test split `[N, 3, 32, 32]` with labels and keys, and the model that classifies them."""

    classifier: Classifier
    pixels: Tensor
    labels: Tensor
    keys: tuple[str, ...]

    def take(self, rows: Tensor) -> Images:
        """Return the given rows, in that order."""
        keys = tuple(self.keys[row] for row in rows.tolist())
        return replace(self, pixels=self.pixels[rows], labels=self.labels[rows], keys=keys)

    def attacked(self, attack: Attack, **settings: int | bool) -> Outcome:
        """Run the driver over all of them."""
        objective = Misclassify(self.classifier, self.labels, loss=attack.loss)
        chosen = DriverSettings(**settings)  # type: ignore[arg-type]  # tile is a number, compact a truth value
        return run_attack(attack, objective, self.pixels, self.keys, THREAT, seed=SEED, settings=chosen)


def open_images(count: int) -> Images:
    """Take the images that `ironclip eval --limit` takes."""
    info = load_suite("natural", DATA).entry("cifar10").open()
    samples = [sample for subset in [limit(info.dataset, count)] for sample in map(subset.__getitem__, range(count))]
    return Images(
        classifier=load_classifier(MODEL, info.class_names, info.templates),
        pixels=torch.stack([sample.pixels for sample in samples]),
        labels=torch.tensor([sample.label for sample in samples]),
        keys=tuple(sample.key for sample in samples),
    )


def differing(first: Outcome, second: Outcome) -> int:
    """Count the samples whose flags or whose images, bit for bit, are not the same."""
    flags = (first.broken != second.broken) | (first.clean.broken != second.clean.broken)
    bits = first.adversarial.view(torch.int32) != second.adversarial.view(torch.int32)
    return int((flags | bits.flatten(1).any(dim=1)).sum())


@item(
    "bit_identity",
    claims=[
        Claim(
            "tiles", "flags and adversarial images bit-identical for tiles 16, 32, 64 (samples that differ)", exactly(0)
        ),
        Claim("batches", "… for user batch sizes 1, 7, 64, rounded up to a tile", exactly(0)),
        Claim("order", "… in shuffled order", exactly(0)),
        Claim("compaction", "… with compaction on and off", exactly(0)),
        Claim("shards", "… and their stored rows and images, for two shards merged", exactly(0)),
        Claim("row_invariance", "the start-up probe row_invariance is 0 on this machine and is stored", exactly(0)),
    ],
    modules=MODULES,
    files=FILES,
)
def bit_identity(context: Context) -> Iterator[Figure]:
    attack = PGD(steps=context.pick(20, 3))
    images = open_images(SAMPLES)
    reference = images.attacked(attack, tile=64)
    wrong, broken = int(reference.clean.broken.sum()), int(reference.broken.sum())
    about = f"of {SAMPLES} samples; {broken - wrong} broken by PGD-{attack.steps}, {SAMPLES - broken} not"
    if not wrong < broken < SAMPLES:
        raise ArithmeticError(f"nothing to compare: {about}")

    def different(name: str, *values: int | bool) -> int:
        """Count what differs from the reference, over values of a setting of the driver."""
        return sum(differing(reference, images.attacked(attack, **{name: value})) for value in values)

    def figure(claim: str, count: int) -> Figure:
        return Figure(claim, count, f"{count} {about}")

    yield figure("tiles", different("tile", 16, 32))
    yield figure("batches", different("tile", 1, 7))
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(1))
    shuffled = images.take(order).attacked(attack, tile=16)
    back = torch.argsort(order)
    clean = replace(shuffled.clean, broken=shuffled.clean.broken[back])
    unshuffled = replace(shuffled, adversarial=shuffled.adversarial[back], broken=shuffled.broken[back], clean=clean)
    yield figure("order", differing(reference, unshuffled))
    yield figure("compaction", different("compact", False))
    with TemporaryDirectory() as folder:
        yield from _shards(Path(folder), attack, images, reference)


def _shards(folder: Path, attack: Attack, images: Images, reference: Outcome) -> Iterator[Figure]:
    """Evaluate the samples in two parts, merge them, and compare with an evaluation in one part and with the driver."""

    def evaluated(name: str, part: int, parts: int, tile: int) -> RunStore:
        return evaluate_suite(
            EvaluationRequest(
                model=MODEL,
                suite="natural",
                data_root=str(DATA),
                attacks=(attack,),
                threats=(THREAT,),
                out=folder / name,
                datasets=("cifar10",),
                seed=SEED,
                limit=len(images.keys),
                tile=tile,
                shard=(part, parts),
                save="all",
            )
        )

    whole = evaluated("whole", 0, 1, 64)
    for part in (0, 1):
        evaluated(f"part-{part}", part, 2, 16)
    merged = merge([folder / "part-0", folder / "part-1"], folder / "merged")
    (unit,) = merged.units()
    rows = {store: _plain_rows(store.read_unit(unit)) for store in (whole, merged)}
    pictures = {store: store.read_images(unit, images.keys) for store in (whole, merged)}
    different = 0
    for row, key in enumerate(images.keys):
        same_rows = key in rows[merged] and rows[whole].get(key) == rows[merged][key]
        stored = [pictures[store][key][1] for store in (whole, merged) if key in pictures[store]]
        expected = reference.adversarial[row].numpy().tobytes()
        same_images = len(stored) == 2 and all(one.tobytes() == expected for one in stored)
        same_flag = key in rows[merged] and rows[merged][key]["broken"] == bool(reference.broken[row])
        different += not (same_rows and same_images and same_flag)
    strangers = len(rows[merged].keys() - set(images.keys))
    sizes = [len(RunStore.open(folder / f"part-{part}").done_ids(unit)) for part in (0, 1)]
    shown = f"{different + strangers} of {len(images.keys)} samples (shards of {sizes[0]} and {sizes[1]}, tiles of 16)"
    yield Figure("shards", different + strangers, shown)
    sessions = [session for store in (whole, merged) for session in RunStore.open(store.path).run.sessions]
    probes = [session.row_invariance for session in sessions]
    yield Figure("row_invariance", max(probes), f"{max(probes):g} in run.json of all {len(probes)} sittings")


def _plain_rows(table: pa.Table) -> dict[str, dict[str, object]]:
    """Return the rows by sample, without the columns that say how a row came to be."""
    kept = [name for name in table.column_names if name not in INCIDENTAL]
    return {str(row["sample_id"]): row for row in table.select(kept).to_pylist()}


class Interrupted(Exception):
    """Raised in the middle of an attack."""


@dataclass(frozen=True, kw_only=True)
class Restless(Misclassify):
    """An objective that may draw from every global random state, and may give up.

    Attributes:
        looks: Collects the evaluations so far.
        draws: Whether it draws.
        patience: It raises at this evaluation; None for never.
    """

    looks: list[int]
    draws: bool
    patience: int | None

    def evaluate(self, pixels: Tensor) -> Evaluation:
        if self.draws:
            random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002  # the global states are the point
        self.looks.append(len(pixels))
        if len(self.looks) == self.patience:
            raise Interrupted
        return super().evaluate(pixels)


@item(
    "hygiene",
    claims=[
        Claim(
            "model", "after an attack .grad, requires_grad and modes are as before, also after an exception", exactly(0)
        ),
        Claim("random", "global random states untouched (Python, numpy, torch), also after an exception", exactly(0)),
    ],
    modules=MODULES,
    files=FILES,
)
def hygiene(context: Context) -> Iterator[Figure]:
    images = open_images(32)
    _disturb(images.classifier)
    attack = PGD(steps=3)
    cases: dict[str, Callable[[], object]] = {
        "driver": lambda: _driver(attack, images, None),
        "driver, exception": lambda: _driver(attack, images, 4),
        "perturb": lambda: _perturb(attack, images, None),
        "perturb, exception": lambda: _perturb(attack, images, 2),
    }
    moved: list[str] = []
    drawn: list[str] = []
    for name, case in cases.items():
        before, states = _model_state(images.classifier), _random_states()
        ended = ""
        try:
            case()
        except Interrupted:
            ended = "exception"
        if ("exception" in name) != (ended == "exception"):
            raise ArithmeticError(f"{name}: the exception did not come as planned")
        after = _model_state(images.classifier)
        moved += [f"{name}: {part}" for part in before if before[part] != after[part]]
        drawn += [f"{name}: {part}" for part, state in _random_states().items() if state != states[part]]
    about = f"{len(cases)} runs (driver and perturb, with and without exception)"
    yield Figure(
        "model", len(moved), "; ".join([f"{len(moved)} of {len(before)} parts moved in {about}", *moved])[:200]
    )
    yield Figure("random", len(drawn), "; ".join([f"{len(drawn)} states moved in {about}", *drawn])[:200])


def _driver(attack: Attack, images: Images, patience: int | None) -> None:
    objective = Restless(images.classifier, images.labels, looks=[], draws=True, patience=patience)
    run_attack(attack, objective, images.pixels, images.keys, THREAT, seed=SEED)


def _perturb(attack: Attack, images: Images, patience: int | None) -> None:
    # Only an evaluation shields the global states from what a model draws; the attack itself must not touch them.
    objective = Restless(images.classifier, images.labels, looks=[], draws=False, patience=patience)
    attack.perturb(objective, images.pixels, THREAT, SampleRandom(SEED, images.keys))


def _disturb(classifier: nn.Module) -> None:
    """Give the parts of a model modes, gradients and wishes for gradients that nothing would set by default."""
    for number, module in enumerate(classifier.modules()):
        module.training = number % 3 == 0
    for number, parameter in enumerate(classifier.parameters()):
        parameter.requires_grad_(number % 2 == 0)
        parameter.grad = torch.full_like(parameter, 0.5) if number % 4 == 0 else None


def _model_state(classifier: nn.Module) -> dict[str, object]:
    """Return everything that an attack has to leave as it was, by name."""
    state: dict[str, object] = {f"mode of {name}": module.training for name, module in classifier.named_modules()}
    for name, parameter in classifier.named_parameters():
        gradient = None if parameter.grad is None else parameter.grad.numpy().tobytes()
        state |= {
            f"requires_grad of {name}": parameter.requires_grad,
            f"grad of {name}": gradient,
            f"value of {name}": parameter.detach().numpy().tobytes(),
        }
    return state


def _random_states() -> dict[str, object]:
    return {
        "python": random.getstate(),
        "numpy": str(np.random.get_state()),  # noqa: NPY002  # the global state is the point
        "torch": torch.get_rng_state().numpy().tobytes(),
    }
