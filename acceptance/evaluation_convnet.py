"""A user's own convolutional net, adversarially trained and not: through `python:`, and beside the peers."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acceptance import convnet, peers
from acceptance.claims import ROOT, SHARED, Bound, Claim, Context, Figure, at_least, at_most, exactly, item
from acceptance.command_line import ironclip, must
from acceptance.evaluation_peers import compared_pgd, pgd_claims
from acceptance.evaluation_tuned import Attacked
from ironclip.attacks.autoattack import attack_list
from ironclip.attacks.pgd import PGD
from ironclip.attacks.sequence import Member
from ironclip.attacks.threat_model import ThreatModel
from ironclip.data.contract import Dataset
from ironclip.data.order import limit
from ironclip.data.sources import open_dataset
from ironclip.evaluation.store import RunStore
from ironclip.models.zero_shot import PythonClassifier
from ironclip.suites.suite import load_suite

GAME = ThreatModel(norm="linf", eps="2/255")
DATA = SHARED / "data"
KINDS = {"clean": "trained on images as they are", "robust": "trained on attacked images"}
BATCH, EPOCHS, TRAINED_ON = 128, 10, 30_000
ATTACK = "pgd:steps=20,start_at=zero"


@dataclass(frozen=True)
class Images:
    """Pixels `[N, 3, H, W]` in [0, 1], labels `[N]` and keys of some samples of CIFAR-10."""

    pixels: Tensor
    labels: Tensor
    keys: tuple[str, ...]


def training_images(count: int) -> Images:
    """Take images of the training split, by hash of their key."""
    return _images(limit(open_dataset(f"wds:{DATA / 'cifar10'}?split=train"), count))


def test_images(count: int) -> Images:
    """Take the images that `ironclip eval --limit` takes."""
    return _images(limit(load_suite("natural", str(DATA)).entry("cifar10").open().dataset, count))


def _images(dataset: Dataset) -> Images:
    samples = [dataset[index] for index in range(len(dataset))]
    return Images(
        torch.stack([sample.pixels for sample in samples]),
        torch.tensor([sample.label for sample in samples]),
        tuple(sample.key for sample in samples),
    )


def fitted(net: nn.Module, images: Images, *, epochs: int, eps: float, seed: int) -> None:
    """Train in place with Adam and a cosine of the learning rate; above radius 0 on images attacked by three steps."""
    random = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        bound = math.sqrt(6 / parameter[0].numel()) if parameter.ndim > 1 else 0.0
        nn.init.uniform_(parameter, -bound, bound, generator=random)
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
    total = epochs * math.ceil(len(images.labels) / BATCH)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, total)
    net.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images.labels), generator=random).split(BATCH):
            pixels, labels = images.pixels[rows], images.labels[rows]
            if torch.rand((), generator=random) < 0.5:
                pixels = pixels.flip(3)
            if eps:
                pixels = _attacked(net, pixels, labels, eps, random)
            optimiser.zero_grad()
            F.cross_entropy(net(pixels), labels).backward()
            optimiser.step()
            plan.step()
    net.eval()


def _attacked(net: nn.Module, pixels: Tensor, labels: Tensor, eps: float, random: torch.Generator) -> Tensor:
    point = pixels + eps * (2 * torch.rand(pixels.shape, generator=random) - 1)
    for _ in range(3):
        leaf = point.clamp(0, 1).requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(net(leaf), labels), leaf)
        point = pixels + (leaf.detach() + 0.6 * eps * gradient.sign() - pixels).clamp(-eps, eps)
    return point.clamp(0, 1)


def trained(context: Context) -> dict[str, convnet.ConvNet]:
    """Train both, or read them where that was done, and lay the user's file beside them."""
    context.work.mkdir(parents=True, exist_ok=True)
    missing = [kind for kind in KINDS if not (context.work / f"{kind}.pt").is_file()]
    if missing:
        images = training_images(context.pick(TRAINED_ON, 3000))
        for kind in missing:
            net = convnet.ConvNet()
            eps = GAME.radius if kind == "robust" else 0.0
            fitted(net, images, epochs=context.pick(EPOCHS, 3), eps=eps, seed=0)
            torch.save(net.state_dict(), context.work / "part.pt")
            (context.work / "part.pt").replace(context.work / f"{kind}.pt")
    shutil.copy(ROOT / "acceptance" / "convnet.py", context.work / "convnet.py")
    return {kind: convnet.load(context.work / f"{kind}.pt") for kind in KINDS}


def through_command_line(work: Path, kind: str, images: int) -> dict[str, bool]:
    """Evaluate as a user does, in the folder of the model, and say which images are broken."""
    words = ("--suite", "natural", "--dataset", "cifar10", "--data-root", DATA, "--limit", images)
    run = work / f"run-{kind}"
    must(
        ironclip(
            "eval", f"python:convnet:{kind}", *words, "--attack", ATTACK, "--eps", GAME.eps, "--out", run, cwd=work
        )
    )
    store = RunStore.open(run)
    (unit,) = store.units()
    rows = store.read_unit(unit)
    return dict(zip(rows["sample_id"].to_pylist(), rows["broken"].to_pylist(), strict=True))


def claims() -> list[Claim]:
    """Say what each of the nets has to show."""
    found = []
    for kind, words in KINDS.items():
        found += [
            Claim(f"{kind}_clean", f"a convolutional net {words}: right on clean images", Bound(unit="%")),
            Claim(f"{kind}_images", "… images evaluated through python:convnet", at_least(500)),
            Claim(f"{kind}_same", "… flags of `ironclip eval` that are not those of the library", exactly(0)),
        ]
    for kind in KINDS:
        found += [Claim(f"{kind}_{one.name}", f"{kind}: {one.line}", one.bound) for one in pgd_claims()]
        found.append(Claim(f"{kind}_pair", f"{kind}: robust images under our pair more than under theirs", at_most(2)))
    return found


@item(
    "python_models",
    claims=claims(),
    modules=[
        *("acceptance.convnet", "acceptance.peers", "acceptance.evaluation_peers", "acceptance.command_line"),
        *("ironclip.attacks.autoattack", "ironclip.attacks.apgd", "ironclip.attacks.pgd", "ironclip.models.sources"),
    ],
    files=[
        *("../shared/data/cifar10/train-*.tar.gz", "../shared/data/cifar10/test-*.tar.gz"),
        *("src/ironclip/suites/natural.yaml", "acceptance/requirements-peers.txt"),
    ],
)
def python_models(context: Context) -> Iterator[Figure]:
    """Both are trained here, from fixed seeds, in minutes."""
    nets = trained(context)
    images = test_images(context.pick(500, 32))
    games = {
        kind: Attacked(PythonClassifier(net), images.pixels, images.labels, images.keys, GAME)
        for kind, net in nets.items()
    }
    for kind, game in games.items():
        right = peers.still_right(game.classifier, images.pixels, images.labels)
        share = 100 * right.double().mean().item()
        yield Figure(f"{kind}_clean", share, f"{share:.1f} %")
        flags = through_command_line(context.work, kind, len(images.labels))
        yield Figure(f"{kind}_images", None if context.short else len(flags), str(len(flags)))
        ours = game.standing([Member("PGD", PGD(steps=20, start_at="zero"))], seed=0)
        other = sum(flags[key] == stands for key, stands in zip(images.keys, ours.tolist(), strict=True))
        yield Figure(f"{kind}_same", other, f"{other} of {len(flags)}; {int(ours.sum())} stand at {GAME.eps}")
    with peers.peers():
        for kind, game in games.items():
            for figure in compared_pgd(game, GAME.radius):
                yield Figure(f"{kind}_{figure.claim}", figure.value, figure.shown)
            if context.short:
                yield Figure(f"{kind}_pair", None, "minutes on two cores")
                continue
            mine = int(game.standing(attack_list("pair").members, seed=0).sum())
            pair = ["apgd-ce", "apgd-t"]
            found = peers.pyautoattack(game.classifier, images.pixels, images.labels, GAME.radius, seed=0, attacks=pair)
            theirs = int(found.sum())
            yield Figure(
                f"{kind}_pair", mine - theirs, f"ours {mine}, pyautoattack {theirs} of {len(images.labels)} stand"
            )
