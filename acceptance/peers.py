"""The libraries that our attacks are compared with: where they are, and what they do to a model."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from acceptance.claims import ROOT, CannotRunError
from ironclip.attacks.driver import untouched_random_state
from ironclip.attacks.objectives import is_correct
from ironclip.models.zero_shot import Classifier

FOLDER = ROOT / "runs" / "peers"
INSTALL = "python -m pip install --no-deps --target runs/peers -r acceptance/requirements-peers.txt"


@contextmanager
def peers() -> Iterator[None]:
    """Let the peers be imported inside the block.

    Raises:
        CannotRunError: They are not installed.
    """
    if not FOLDER.is_dir():
        raise CannotRunError(f"the peers are not here: {INSTALL}")
    # Last, so that none of their versions takes the place of ours.
    sys.path.append(str(FOLDER))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(FOLDER))


class Logits(nn.Module):
    """A classifier as peers call one."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier.logits(pixels)


def still_right(classifier: Classifier, pixels: Tensor, labels: Tensor, batch: int = 64) -> Tensor:
    """Return which images are answered rightly, `[N]` bool."""
    with torch.no_grad():
        flags = [
            is_correct(classifier.logits(part), own)
            for part, own in zip(pixels.split(batch), labels.split(batch), strict=True)
        ]
    return torch.cat(flags)


def pyautoattack(
    classifier: Classifier, pixels: Tensor, labels: Tensor, eps: float, *, seed: int, attacks: list[str] | None = None
) -> Tensor:
    """Run AutoAttack `standard`, or some of its attacks, and return which images stand, `[N]` bool."""
    kind: Any = importlib.import_module("pyautoattack").AutoAttack
    version = "standard" if attacks is None else "custom"
    with untouched_random_state():
        run = kind(Logits(classifier), norm="Linf", eps=eps, seed=seed, device="cpu", attacks=attacks, version=version)
        run.verbose = False
        found = run.run_standard_evaluation(pixels, labels, batch_size=64)
    adversarial = found[0] if isinstance(found, tuple) else found
    return still_right(classifier, adversarial, labels) & still_right(classifier, pixels, labels)


def foolbox_pgd(
    classifier: Classifier, pixels: Tensor, labels: Tensor, eps: float, *, steps: int, step: float, random: bool
) -> Tensor:
    """Run foolbox's PGD and return which images stand."""
    foolbox: Any = importlib.import_module("foolbox")
    model = foolbox.PyTorchModel(Logits(classifier), bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfPGD(abs_stepsize=step, steps=steps, random_start=random)
    with untouched_random_state():
        torch.manual_seed(0)
        parts = [
            attack.run(model, part, own, epsilon=eps)
            for part, own in zip(pixels.split(64), labels.split(64), strict=True)
        ]
    return still_right(classifier, torch.cat(parts), labels) & still_right(classifier, pixels, labels)


def torchattacks_pgd(
    classifier: Classifier, pixels: Tensor, labels: Tensor, eps: float, *, steps: int, step: float, random: bool
) -> Tensor:
    """Run torchattacks' PGD and return which images stand."""
    kind: Any = importlib.import_module("torchattacks").PGD
    model = Logits(classifier)
    attack = kind(model, eps=eps, alpha=step, steps=steps, random_start=random)
    attack.device = torch.device("cpu")
    with untouched_random_state():
        torch.manual_seed(0)
        parts = [attack(part, own) for part, own in zip(pixels.split(64), labels.split(64), strict=True)]
    return still_right(classifier, torch.cat(parts), labels) & still_right(classifier, pixels, labels)


def pyautoattack_square(classifier: Classifier, pixels: Tensor, labels: Tensor, eps: float, *, queries: int) -> Tensor:
    """Run its Square in l2 and return the images that it ends with."""
    kind: Any = importlib.import_module("pyautoattack.square").SquareAttack
    with untouched_random_state(), torch.no_grad():
        attack = kind(
            Logits(classifier), norm="L2", n_queries=queries, eps=eps, seed=0, device="cpu", resc_schedule=False
        )
        attack.init_hyperparam(pixels)
        _, found = attack.attack_single_run(pixels, labels)
    return torch.as_tensor(found)
