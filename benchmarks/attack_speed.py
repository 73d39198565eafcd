"""How fast our attacks are, beside the same attacks of other libraries on the same model.

    python -m benchmarks.attack_speed pair --model RUN/model [--images 500] [--eps 3/255] [--data-root DATA]
    python -m benchmarks.attack_speed steps [--model open_clip:ViT-B-32/random?seed=0] [--images 32] [--steps 10]

`pair` runs APGD-CE with five restarts and APGD-T on images of CIFAR-10, in laps of 100; pyautoattack runs its two.
`steps` counts what an iteration costs, where nothing breaks and nobody may stop early: against pyautoattack's
APGD-CE, foolbox's PGD and torchattacks' PGD, and against the first on stock open_clip's tower.

Both sides attack one classifier with the class embeddings encoded once, in laps that take turns, so that a machine that
slows down slows both; the ratio is the median of the laps'. Each side has the best of three batch sizes. The others
compute in float32 on our tower (the fast path where it serves), which is the harder race; ours searches in bfloat16
and verifies in float32. Images that stand are judged alike, in float32, outside the clock. The peers are found where
acceptance keeps them. Prints one JSON line a race.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from acceptance.peers import Logits, peers
from torch import Tensor

from benchmarks.attack_race import Game, Race, Runner, Side, measured_rates, race
from ironclip.attacks.apgd import APGD
from ironclip.attacks.autoattack import attack_list
from ironclip.attacks.driver import GRANULE, DriverSettings, fitted, untouched_random_state
from ironclip.attacks.objectives import Misclassify
from ironclip.attacks.pgd import PGD
from ironclip.attacks.sequence import Member, run_sequence
from ironclip.attacks.threat_model import ThreatModel
from ironclip.data.order import limit
from ironclip.machine import describe_machine
from ironclip.models.clip import CLIPModel
from ironclip.models.sources import load_model
from ironclip.models.zero_shot import Classifier, FixedClasses, ZeroShotClassifier
from ironclip.suites.suite import load_suite

SEED = 0
STEP_SHARE = 0.25
"""Step of PGD as a share of eps."""

LAP = 100
"""Images of a lap of `pair`: 500 are five laps."""

EPS = "3/255"
"""Of `pair`. Nearly all of its cost is that of images that stand: at 2/255 about twice as many do, at 4/255 next to
none; between them enough stand for a comparison, in the minutes that a benchmark may take."""

PAIR_BATCHES, BATCHES = (32, 64, 128), (8, 16, 32)
"""Batch sizes to choose from; ours rounds up to a multiple of 16."""

PROBE_STEPS = 2
"""Iterations by which the batch size is chosen."""


def ours(*members: Member, granule: int = GRANULE) -> Runner:
    """Return our attacks, searching in bfloat16, in tiles that are multiples of so many rows."""

    def run(classifier: Classifier, game: Game, batch: int) -> Tensor:
        def objective(attack: Any) -> Misclassify:
            return Misclassify(classifier, game.labels, loss=attack.loss)

        settings = DriverSettings(tile=batch, search_dtype=torch.bfloat16, granule=granule)
        outcome = run_sequence(members, objective, game.pixels, game.keys, game.threat, seed=SEED, settings=settings)
        return outcome.adversarial

    return run


def fitted_granule(classifier: Classifier, game: Game, batch: int) -> int:
    """Find how small tiles may be, as an evaluation does once when it begins."""
    few = torch.arange(GRANULE) % len(game.labels)
    settings = DriverSettings(tile=batch, search_dtype=torch.bfloat16)
    return fitted(Misclassify(classifier, game.labels[few]), game.pixels[few], settings)[0].granule


def pyautoattack_pair(classifier: Classifier, game: Game, batch: int) -> Tensor:
    """Run pyautoattack's APGD-CE with five restarts and its APGD-T, as its own list of attacks."""
    kind: Any = importlib.import_module("pyautoattack").AutoAttack
    wanted = {"attacks": ["apgd-ce", "apgd-t"], "version": "custom"}
    with untouched_random_state():
        attacks = kind(Logits(classifier), norm="Linf", eps=game.threat.radius, seed=SEED, device="cpu", **wanted)
        attacks.verbose = False
        return torch.as_tensor(attacks.run_standard_evaluation(game.pixels, game.labels, batch_size=batch)[0])


def pyautoattack_apgd(steps: int) -> Runner:
    """Return pyautoattack's APGD-CE, one restart."""

    def run(classifier: Classifier, game: Game, batch: int) -> Tensor:
        kind: Any = importlib.import_module("pyautoattack.autopgd_base").APGDAttack
        attack = kind(Logits(classifier), n_iter=steps, norm="Linf", eps=game.threat.radius, seed=SEED, device="cpu")
        return _in_batches(attack.perturb, game, batch)

    return run


def foolbox_pgd(steps: int) -> Runner:
    """Return foolbox's PGD from a random start."""

    def run(classifier: Classifier, game: Game, batch: int) -> Tensor:
        foolbox: Any = importlib.import_module("foolbox")
        model = foolbox.PyTorchModel(Logits(classifier), bounds=(0, 1), device="cpu")
        eps = game.threat.radius
        attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP_SHARE * eps, steps=steps, random_start=True)
        return _in_batches(lambda pixels, labels: attack.run(model, pixels, labels, epsilon=eps), game, batch)

    return run


def torchattacks_pgd(steps: int) -> Runner:
    """Return torchattacks' PGD from a random start."""

    def run(classifier: Classifier, game: Game, batch: int) -> Tensor:
        kind: Any = importlib.import_module("torchattacks").PGD
        eps = game.threat.radius
        attack = kind(Logits(classifier), eps=eps, alpha=STEP_SHARE * eps, steps=steps, random_start=True)
        attack.device = torch.device("cpu")
        return _in_batches(attack, game, batch)

    return run


def _in_batches(attack: Callable[[Tensor, Tensor], Tensor], game: Game, batch: int) -> Tensor:
    with untouched_random_state():
        torch.manual_seed(SEED)
        parts = zip(game.pixels.split(batch), game.labels.split(batch), strict=True)
        return torch.cat([attack(pixels, labels) for pixels, labels in parts])


def _apgd(steps: int) -> Runner:
    return ours(Member("APGD-CE", APGD(steps=steps)))


def run_pair(classifier: FixedClasses, game: Game, *, kept: Path | None = None) -> Race:
    """Race our `pair` against pyautoattack's two attacks, in laps over parts of the images."""
    with peers():
        granule = fitted_granule(classifier, game, max(PAIR_BATCHES))
        here = Side(ours(*attack_list("pair").members, granule=granule), _apgd(PROBE_STEPS), classifier)
        there = Side(pyautoattack_pair, pyautoattack_apgd(PROBE_STEPS), classifier)
        rates = measured_rates(classifier, max(PAIR_BATCHES))
        laps = game.laps(LAP)
        return race("pair", "pyautoattack", (here, there), laps, sizes=PAIR_BATCHES, rates=rates, kept=kept)


def run_steps(model: CLIPModel, stock: CLIPModel, *, images: int, steps: int, rounds: int = 5) -> list[Race]:
    """Race single attacks of so many steps against each library, where nothing breaks.

    Args:
        model: What both attack.
        stock: The same weights without the fast path; pyautoattack attacks these too.
        images: How many.
        steps: Of each attack.
        rounds: Laps against pyautoattack; against the others three at most, which nothing is claimed of.

    Raises:
        ArithmeticError: An image broke, so that the two sides did not do the same work.
    """
    weights, game = unbroken(model, images)
    classifier, plain = (FixedClasses(one.requires_grad_(False), weights, logit_scale=1.0) for one in (model, stock))
    apgd, pgd = _apgd(steps), ours(Member("PGD", PGD(steps=steps, rel_step_size=STEP_SHARE)))
    short = _apgd(PROBE_STEPS)
    theirs = pyautoattack_apgd(steps)
    there = Side(theirs, pyautoattack_apgd(PROBE_STEPS), classifier)
    few, rates = min(rounds, 3), measured_rates(classifier, max(BATCHES))
    with peers():
        sides = (Side(apgd, short, classifier), there)
        first = race(f"APGD-CE-{steps}", "pyautoattack", sides, [game] * rounds, sizes=BATCHES, rates=rates)
        others = [
            (f"APGD-CE-{steps}", "pyautoattack on stock open_clip", apgd, Side(theirs, theirs, plain)),
            (f"PGD-{steps}", "foolbox", pgd, Side(foolbox_pgd(steps), theirs, classifier)),
            (f"PGD-{steps}", "torchattacks", pgd, Side(torchattacks_pgd(steps), theirs, classifier)),
        ]
        races = [first]
        for attack, peer, run, side in others:
            # One pass through one model decides the best batch, whoever asks for it.
            sides = (Side(run, short, classifier), side)
            races.append(race(attack, peer, sides, [game] * few, sizes=BATCHES, batches=first.batches, rates=rates))
    for one in races:
        if one.standing != (sum(one.images),) * 2:
            raise ArithmeticError(f"{one.peer}: {one.standing} of {sum(one.images)} stand, all should")
    return races


def unbroken(model: CLIPModel, images: int, *, classes: int = 10) -> tuple[Tensor, Game]:
    """Make class weights `[C, D]` and a game in which no image breaks within 1/255, at a logit scale of 1.

    The first class is the mean of the images' features, which of random weights are all alike; the others are random
    directions. So margins are wide, and gradients are not zero.
    """
    random = torch.Generator().manual_seed(SEED)
    side = model.spec.preprocessing.resolution
    pixels = torch.rand(images, 3, side, side, generator=random)
    with torch.no_grad():
        features = model.image_features(pixels)
        rest = torch.randn(classes - 1, features.shape[1], generator=random)
        weights = F.normalize(torch.cat([features.mean(dim=0, keepdim=True), rest]), dim=-1)
    keys = tuple(map(str, range(images)))
    return weights, Game(pixels, torch.zeros(images, dtype=torch.int64), keys, ThreatModel(eps="1/255"))


def open_pair(model: str, images: int, eps: str, data_root: str) -> tuple[FixedClasses, Game]:
    """Take a CLIP and the images that `ironclip eval --suite natural --datasets cifar10 --limit` takes."""
    info = load_suite("natural", data_root).entry("cifar10").open()
    chosen = limit(info.dataset, images)
    samples = [chosen[index] for index in range(len(chosen))]
    game = Game(
        torch.stack([sample.pixels for sample in samples]),
        torch.tensor([sample.label for sample in samples]),
        tuple(sample.key for sample in samples),
        ThreatModel(eps=eps),
    )
    classifier = ZeroShotClassifier(load_model(model), info.class_names, info.templates)
    return classifier.requires_grad_(False), game


def printed(one: Race, setting: str, model: str) -> str:
    """Return a race as a JSON line, with the machine it ran on."""
    machine = describe_machine(Path())
    about = {"processor": machine.processor, "threads": machine.threads, "torch": machine.torch}
    return json.dumps({"benchmark": "attack_speed", "setting": setting, "model": model} | one.line() | about)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    settings = parser.add_subparsers(dest="setting", required=True)
    pair = settings.add_parser("pair", help="APGD-CE and APGD-T on images of CIFAR-10")
    pair.add_argument("--model", required=True, help="a tuned model")
    pair.add_argument("--images", type=int, default=500)
    pair.add_argument("--eps", default=EPS)
    pair.add_argument("--data-root", default="../shared/data")
    single = settings.add_parser("steps", help="an iteration, where nothing breaks")
    single.add_argument("--model", default="open_clip:ViT-B-32/random?seed=0")
    single.add_argument("--images", type=int, default=32)
    single.add_argument("--steps", type=int, default=10)
    single.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.setting == "pair":
        races = [run_pair(*open_pair(options.model, options.images, options.eps, options.data_root))]
    else:
        model, stock = load_model(options.model), load_model(options.model, fast=False)
        races = run_steps(model, stock, images=options.images, steps=options.steps, rounds=options.rounds)
    for one in races:
        print(printed(one, options.setting, options.model))


if __name__ == "__main__":
    main()
