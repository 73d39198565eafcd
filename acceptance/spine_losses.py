"""The mathematics: losses against stored values, attacks against closed forms."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acceptance.claims import SHARED, Claim, Context, Figure, at_most, exactly, item
from ironclip.attacks.base import Attack
from ironclip.attacks.driver import run_attack
from ironclip.attacks.fgsm import FGSM
from ironclip.attacks.objectives import Misclassify
from ironclip.attacks.pgd import PGD
from ironclip.attacks.threat_model import ThreatModel
from ironclip.losses.classification import cross_entropy_loss
from ironclip.losses.embedding import squared_distance_loss
from ironclip.models.zero_shot import Classifier, zero_shot_logits

CASES = ("tecoa", "tecoa_small_scale", "fare")


@item(
    "losses",
    claims=[
        Claim("float64", "losses.tecoa and losses.fare equal vectors/losses.json in float64 (relative)", at_most(1e-9)),
        Claim("float32", "the same in float32", at_most(1e-5)),
    ],
    modules=["ironclip.losses.classification", "ironclip.losses.embedding"],
    files=["../shared/vectors/losses.json"],
)
def losses(context: Context) -> Iterator[Figure]:
    cases = json.loads((SHARED / "vectors" / "losses.json").read_text())["cases"]
    chosen = {case["name"]: case for case in cases if case["name"] in CASES}
    for name, dtype in (("float64", torch.float64), ("float32", torch.float32)):
        errors = {}
        for case in CASES:
            inputs, expected = chosen[case]["inputs"], float(chosen[case]["value"])
            errors[case] = abs(_loss(inputs, dtype) - expected) / abs(expected)
        yield Figure(name, max(errors.values()), ", ".join(f"{case} {error:.1e}" for case, error in errors.items()))


def _loss(inputs: dict[str, list[list[float]]], dtype: torch.dtype) -> float:
    """Compute the loss of a case: TeCoA's where there is a logit scale, else FARE's."""
    adversarial = torch.tensor(inputs["adv"], dtype=dtype)
    if "logit_scale" not in inputs:
        return squared_distance_loss(adversarial, torch.tensor(inputs["teacher_clean"], dtype=dtype)).item()
    text, scale = torch.tensor(inputs["text"], dtype=dtype), torch.tensor(inputs["logit_scale"], dtype=dtype)
    logits = zero_shot_logits(F.normalize(adversarial, dim=-1), F.normalize(text, dim=-1), logit_scale=scale)
    return cross_entropy_loss(logits, torch.tensor(inputs["labels"])).item()


class Affine(Classifier):
    """`z = W x + b` over all pixels; in float64 too, so that the driver can settle ties."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    @property
    def device(self) -> torch.device:
        return self.weight.device

    @property
    def precisions(self) -> frozenset[torch.dtype]:
        return frozenset({torch.float32, torch.float64})

    @contextmanager
    def computing(self, dtype: torch.dtype) -> Iterator[None]:
        yield  # it computes in the precision of its pixels

    def logits(self, pixels: Tensor) -> Tensor:
        return F.linear(pixels.flatten(1), self.weight.to(pixels.dtype), self.bias.to(pixels.dtype))


@dataclass(frozen=True)
class Problem:
    """Two affine classes, some images `[N, 3, 8, 8]` with labels `[N]`, and whether each is robust, `[N]` bool."""

    classifier: Affine
    pixels: Tensor
    labels: Tensor
    threat: ThreatModel
    robust: Tensor


EPS = {"linf": ("1/255", "2/255", "4/255", "8/255"), "l2": ("1/32", "1/16", "1/8", "1/4")}
IMAGES = 16


def made_up(norm: str, number: int) -> Problem:
    """Draw a problem, and decide by formula which of its images no perturbation can break (evaluation plan 2.14)."""
    random = torch.Generator().manual_seed(number)
    # In linf many pixels lie on the edge of the box, where an adversary has no room; in l2 none comes near it.
    low, high = (-0.2, 1.2) if norm == "linf" else (0.35, 0.65)
    pixels = (torch.rand(IMAGES, 3, 8, 8, generator=random) * (high - low) + low).clamp(0, 1)
    weight = torch.randn(2, pixels[0].numel(), generator=random)
    # The bias puts the boundary among the images.
    bias = torch.stack([torch.zeros(()), (pixels.flatten(1) @ (weight[0] - weight[1])).median()])
    classifier = Affine(weight, bias)
    labels = classifier.logits(pixels).argmax(dim=1)
    labels[:2] = 1 - labels[:2]  # wrong before any attack
    threat = ThreatModel(norm="linf" if norm == "linf" else "l2", eps=EPS[norm][number % len(EPS[norm])])

    x, w, b = pixels.flatten(1).double(), weight.double(), bias.double()
    v, beta = w[labels] - w[1 - labels], b[labels] - b[1 - labels]
    room = torch.where(v > 0, x, 1 - x)
    margin = (v * x).sum(dim=1) + beta
    if norm == "linf":
        loss = (v.abs() * room.clamp(max=threat.radius)).sum(dim=1)
    else:
        length = torch.linalg.vector_norm(v, dim=1)
        if bool((threat.radius * v.abs() / length[:, None] >= room).any()):
            raise ArithmeticError("the box is active, so that this formula does not hold")
        loss = threat.radius * length
    return Problem(classifier, pixels, labels, threat, margin - loss > 0)


CLOSED_FORMS: dict[str, tuple[Attack, ...]] = {
    "linf": tuple(kind(loss=loss) for kind in (FGSM, PGD) for loss in ("ce", "margin")),
    "l2": tuple(
        attack
        for loss in ("ce", "margin")
        for attack in (FGSM(loss=loss), PGD(loss=loss, steps=1, rel_step_size=1.0, start_at="zero"))
    ),
}


@item(
    "closed_forms",
    claims=[
        Claim("linf", "affine models, linf with box, C = 2: FGSM and PGD-20 reach the closed form exactly", exactly(0)),
        Claim("l2", "affine models, l2, box inactive: FGSM and PGD reach it in one step from a zero start", exactly(0)),
    ],
    modules=["ironclip.attacks.driver", "ironclip.attacks.fgsm", "ironclip.attacks.pgd"],
)
def closed_forms(context: Context) -> Iterator[Figure]:
    count = context.pick(200, 20)
    for norm, attacks in CLOSED_FORMS.items():
        wrong, shares = 0, []
        for number in range(count):
            problem = made_up(norm, number)
            shares.append(problem.robust.float().mean().item())
            keys = [f"{number}/{index}" for index in range(IMAGES)]
            for attack in attacks:
                objective = Misclassify(problem.classifier, problem.labels, loss=attack.loss)
                outcome = run_attack(attack, objective, problem.pixels, keys, problem.threat, seed=0)
                wrong += int((outcome.broken == problem.robust).sum())
        share = 100 * sum(shares) / len(shares)
        verdicts = count * IMAGES * len(attacks)
        yield Figure(norm, wrong, f"{wrong} of {verdicts:,} verdicts differ ({count} problems, {share:.0f} % robust)")
