"""The sandwich of the evaluation plan, 8: no attack breaks what a linear bound certifies, on a small trained net."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acceptance.claims import Bound, Claim, Context, Figure, at_least, exactly, item
from acceptance.evaluation_convnet import Images, fitted, test_images, training_images
from acceptance.evaluation_tuned import Attacked
from ironclip.attacks.apgd import APGD, TargetedAPGD
from ironclip.attacks.autoattack import attack_list
from ironclip.attacks.corners import Corners
from ironclip.attacks.fab import FAB, TargetedFAB
from ironclip.attacks.fgsm import FGSM
from ironclip.attacks.pgd import PGD
from ironclip.attacks.sequence import Member
from ironclip.attacks.square import Square
from ironclip.attacks.threat_model import ThreatModel
from ironclip.models.zero_shot import PythonClassifier

SIDE, UNITS, CLASSES = 8, 64, 10
GAME = ThreatModel(norm="linf", eps="1/255")
TRAINED_AT = 4 / 255
"""Larger than the game's radius: what is trained at a small one is hardly ever certified there."""
HAIR = 1e-4
"""What float32 may lose of a margin; a bound nearer to nothing certifies nothing."""


class Small(nn.Module):
    """One hidden layer: 3 x 8 x 8 pixels to ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(3 * SIDE * SIDE, UNITS)
        self.classes = nn.Linear(UNITS, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        scores: Tensor = self.classes(F.relu(self.hidden(4 * (pixels.flatten(1) - 0.5))))
        return scores


def shrunk(images: Images) -> Images:
    """Average squares of 4 x 4 pixels."""
    return Images(F.avg_pool2d(images.pixels, images.pixels.shape[-1] // SIDE), images.labels, images.keys)


def certified_margin(net: Small, pixels: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Return a number `[N]` that the margin of no image in ball and box falls below, in float64.

    Each unit whose sign is not sure lies between two lines: above the line that is 0 or the identity, whichever cuts
    off less, and below the one through both ends of its range. What is left is linear in the pixels, and its worst
    within ball and box can be read off. Source: Zhang et al., NeurIPS 2018, arXiv:1811.00866 (CROWN).
    """
    weight, bias = 4 * net.hidden.weight.double().detach(), net.hidden.bias.double().detach()
    bias = bias - 0.5 * weight.sum(dim=1)
    out, shift = net.classes.weight.double().detach(), net.classes.bias.double().detach()
    flat = pixels.flatten(1).double()
    low, high = (flat - eps).clamp(min=0), (flat + eps).clamp(max=1)
    # The range of each unit, exact.
    least = low @ weight.clamp(min=0).T + high @ weight.clamp(max=0).T + bias
    most = high @ weight.clamp(min=0).T + low @ weight.clamp(max=0).T + bias
    sure_on, unsure = least >= 0, (least < 0) & (most > 0)
    below = sure_on.double() + (unsure & (most > -least)).double()
    above = torch.where(unsure, most / torch.where(unsure, most - least, 1.0), sure_on.double())
    found = torch.full((len(pixels),), torch.inf, dtype=torch.float64)
    for rival in range(CLASSES):
        pull = out[labels] - out[rival]
        slope = torch.where(pull >= 0, below, above)
        offset = torch.where((pull < 0) & unsure, -above * least, 0.0)
        linear = (pull * slope) @ weight
        worst = (linear.clamp(min=0) * low + linear.clamp(max=0) * high).sum(dim=1)
        bound = worst + (pull * (slope * bias + offset)).sum(dim=1) + shift[labels] - shift[rival]
        found = torch.where(labels == rival, found, torch.minimum(found, bound))
    return found


def attacks(context: Context) -> dict[str, tuple[Member, ...]]:
    """Return every kind of attack, and the lists."""
    steps, queries = context.pick(100, 10), context.pick(5000, 50)
    single = {
        "FGSM": FGSM(),
        "corners": Corners(queries=context.pick(100, 10)),
        "PGD-20": PGD(),
        "APGD-CE": APGD(steps=steps, restarts=5),
        "APGD-margin": APGD(steps=steps, loss="margin", restarts=5),
        "APGD-T": TargetedAPGD(steps=steps),
        "FAB": FAB(steps=steps),
        "FAB-T": TargetedFAB(steps=steps),
        "Square": Square(queries=queries),
    }
    found = {name: (Member(name, attack),) for name, attack in single.items()}
    lists = context.pick(("pair", "standard"), ())
    return found | {name: attack_list(name).members for name in lists}


@item(
    "sandwich",
    claims=[
        Claim(
            "certified",
            "a small net trained on attacked CIFAR-10 at 8 x 8: certified by a linear bound",
            Bound(unit="%"),
        ),
        Claim("sandwich", "… attacks under which it is less accurate than certified", exactly(0)),
        Claim("broken", "… certified images that any attack breaks", exactly(0)),
        Claim("attacks", "… attacks and lists tried", at_least(11)),
    ],
    modules=[
        *("ironclip.attacks.autoattack", "ironclip.attacks.sequence", "acceptance.evaluation_convnet"),
        *(f"ironclip.attacks.{name}" for name in ("apgd", "corners", "fab", "fgsm", "pgd", "square")),
    ],
    files=["../shared/data/cifar10/*.tar.gz", "src/ironclip/suites/natural.yaml"],
)
def sandwich(context: Context) -> Iterator[Figure]:
    net = Small()
    fitted(net, shrunk(training_images(context.pick(10_000, 500))), epochs=10, eps=TRAINED_AT, seed=0)
    images = shrunk(test_images(context.pick(300, 40)))
    certified = certified_margin(net, images.pixels, images.labels, GAME.radius) > HAIR
    count = int(certified.sum())
    if not count:
        raise ArithmeticError("nothing is certified, so that nothing is compared")
    yield Figure("certified", 100 * count / len(certified), f"{count} of {len(certified)} at {GAME.eps}")
    game = Attacked(PythonClassifier(net), images.pixels, images.labels, images.keys, GAME)
    standing = {name: game.standing(members, seed=0) for name, members in attacks(context).items()}
    below = sum(int(flags.sum()) < count for flags in standing.values())
    shown = ", ".join(f"{name} {int(flags.sum())}" for name, flags in standing.items())
    yield Figure("sandwich", below, f"standing: {shown}")
    yield Figure("broken", sum(int((certified & ~flags).sum()) for flags in standing.values()))
    yield Figure("attacks", None if context.short else len(standing), str(len(standing)))
