"""The driver on dishonest attacks and awkward models: it alone decides, and it leaves no trace."""

from __future__ import annotations

import dataclasses
import random as python_random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ironclip.attacks.base import ATTACKS, Attack, State
from ironclip.attacks.driver import DriverSettings, row_invariance, run_attack
from ironclip.attacks.objectives import Evaluation, Misclassify
from ironclip.attacks.pgd import PGD
from ironclip.attacks.threat_model import ThreatModel
from ironclip.models.zero_shot import PythonClassifier
from made_up_classifiers import Affine, AffineTask, Free
from made_up_images import natural_like

THREAT = ThreatModel(eps="8/255")


def brightness_logits(pixels: Tensor) -> Tensor:
    """Two classes; the second wins above a mean of 0.52."""
    brightness = pixels.mean((1, 2, 3))
    return torch.stack([torch.full_like(brightness, 0.52), brightness], dim=1) * 100


GREY = torch.full((3, 3, 4, 4), 0.5)
LABELS = torch.zeros(3, dtype=torch.int64)
KEYS = ["a", "b", "c"]


@dataclass(frozen=True, kw_only=True)
class Planted(Attack):
    """Claims success at given points, one a step, without looking at the model."""

    name: ClassVar[str] = "planted"
    points: Callable[[Tensor, int], Tensor]
    steps: int = 1
    loss: str = "ce"
    restarts: int = 1

    def start(self, objective, pixels, threat, random):
        return PlantedState.fresh(pixels, step=0)

    def step(self, objective, state):
        claim = Evaluation(torch.full((len(state),), 99.0 + state.step), torch.ones(len(state), dtype=torch.bool))
        return state.examined(
            self.points(state.origin, state.step),
            claim,
            backward=False,
            step=state.step + 1,
            done=state.step + 1 == self.steps,
        )


@dataclass(frozen=True, kw_only=True)
class PlantedState(State):
    step: int


def planted(points, **settings):
    model = PythonClassifier(brightness_logits)
    return run_attack(Planted(points=points, **settings), Misclassify(model, LABELS), GREY, KEYS, THREAT, seed=0)


# Claims that are no successes


@pytest.mark.parametrize(
    "leave",
    [
        lambda origin, step: origin + 9 / 255,  # out of the ball, and wrong there
        lambda origin, step: torch.where(torch.arange(48).view(3, 4, 4) == 7, 1.001, origin),
        lambda origin, step: origin * torch.nan,
        lambda origin, step: origin + torch.inf,
    ],
    ids=["ball", "box", "nan", "inf"],
)
def test_a_point_outside_ball_or_box_is_invalid_and_no_success(leave):
    outcome = planted(leave)
    assert outcome.invalid.all()
    assert not outcome.broken.any()
    assert (outcome.false_claims == 0).all()
    assert torch.equal(outcome.adversarial, GREY)
    assert (outcome.norm == 0).all()
    assert (outcome.restart == -1).all()
    assert (outcome.iterations == -1).all()
    assert torch.equal(outcome.final.logits, outcome.clean.logits)
    assert (outcome.forwards == 1 + 1).all()  # the image, and what the attack says it did: no verdict was needed


def test_a_box_left_by_a_white_image_is_invalid():
    white, model = torch.ones(1, 3, 4, 4), PythonClassifier(lambda pixels: -brightness_logits(pixels))
    attack = Planted(points=lambda origin, step: origin + 1e-6)
    outcome = run_attack(attack, Misclassify(model, torch.tensor([0])), white, ["a"], THREAT, seed=0)
    assert outcome.clean.broken.item() is False
    assert outcome.invalid.item() is True
    assert outcome.broken.item() is False


def test_a_legal_claim_after_an_invalid_one_counts_and_the_invalid_one_stays_on_record():
    outcome = planted(lambda origin, step: origin + (9 / 255 if step == 0 else 7 / 255), steps=2)
    assert outcome.invalid.all()
    assert outcome.broken.all()
    assert (outcome.iterations == 2).all()
    torch.testing.assert_close(outcome.adversarial, GREY + 7 / 255)
    assert (outcome.forwards == 1 + 2 + 1).all()


@pytest.mark.parametrize("restarts", [1, 3])
def test_a_claim_that_float32_does_not_confirm_is_false(restarts):
    outcome = planted(lambda origin, step: origin + (1 + step) / 255, steps=4, restarts=restarts)
    assert not outcome.broken.any()
    assert (outcome.false_claims == 4 * restarts).all()
    assert not outcome.invalid.any()
    assert (outcome.forwards == 1 + restarts * 4 * 2 + 1).all()
    torch.testing.assert_close(outcome.adversarial, GREY + 4 / 255)  # the largest claimed value
    assert (outcome.restart == 0).all()


@dataclass(frozen=True, kw_only=True)
class Blind(PGD):
    """Does not notice its own success."""

    name: ClassVar[str] = "blind"

    def step(self, objective, state):
        moved = super().step(objective, state)
        return dataclasses.replace(moved, claimed=torch.zeros_like(moved.claimed))


def test_a_survivors_best_point_is_looked_at_though_nobody_claimed_it():
    objective = Misclassify(PythonClassifier(brightness_logits), LABELS)
    outcome = run_attack(Blind(), objective, GREY, KEYS, THREAT, seed=0)
    assert outcome.broken.all()
    assert (outcome.iterations == -1).all()
    assert (outcome.restart == 0).all()
    assert THREAT.contains(outcome.adversarial, GREY).all()
    assert (outcome.final.margin > 0).all()


# Precision


class Coarse(Affine):
    """Its bfloat16 is not its float32: there the last class gains `error`."""

    def __init__(self, weight: Tensor, bias: Tensor, error: float) -> None:
        super().__init__(weight, bias)
        self.error = error

    @property
    def precisions(self):
        return frozenset({torch.bfloat16, torch.float32})

    def logits(self, pixels):
        shift = torch.zeros_like(self.bias)
        shift[-1] = self.error if self.dtype == torch.bfloat16 else 0
        with super().computing(torch.float32):
            return super().logits(pixels) + shift


@pytest.mark.parametrize("compact", [True, False])
def test_float32_overrules_the_claims_of_a_coarse_search(compact):
    task, threat = AffineTask(2, seed=0), ThreatModel(eps="16/256")

    def run(classifier: Affine, dtype: torch.dtype):
        settings = DriverSettings(search_dtype=dtype, compact=compact)
        objective = Misclassify(classifier, task.labels, loss="margin")
        return run_attack(PGD(), objective, task.pixels, task.keys, threat, seed=0, settings=settings)

    exact = run(task.classifier, torch.float32)
    eager = run(Coarse(task.weight, task.bias, error=0.75), torch.bfloat16)
    assert torch.equal(eager.broken, exact.broken)
    assert torch.equal(eager.clean.broken, exact.clean.broken)
    zero = task.labels == 0  # of the others it claims too little
    won = zero & exact.broken
    assert torch.equal(eager.adversarial[won], exact.adversarial[won])
    torch.testing.assert_close(eager.final.logits[zero], exact.final.logits[zero], rtol=0, atol=1e-5)
    assert eager.false_claims[zero].sum() > 10
    assert (eager.false_claims[~zero] == 0).all()
    survivors = zero & ~exact.broken
    assert eager.false_claims[survivors].max() > 1  # the search goes on from a false claim
    assert torch.equal(eager.iterations[zero], exact.iterations[zero])
    assert (exact.false_claims == 0).all()


def test_a_break_that_the_coarse_search_misses_is_found_in_the_last_look():
    task, threat = AffineTask(2, seed=0), ThreatModel(eps="16/256")
    shy = Coarse(task.weight, task.bias, error=-100.0)
    settings = DriverSettings(search_dtype=torch.bfloat16)
    labels = torch.zeros_like(task.labels)
    objective = Misclassify(shy, labels, loss="margin")
    outcome = run_attack(PGD(), objective, task.pixels, task.keys, threat, seed=0, settings=settings)
    exact = run_attack(
        PGD(), Misclassify(task.classifier, labels, loss="margin"), task.pixels, task.keys, threat, seed=0
    )
    assert torch.equal(outcome.broken, exact.broken)
    late = outcome.broken & ~outcome.clean.broken
    assert late.any()
    assert (outcome.iterations[late] == -1).all()


def tied() -> tuple[Tensor, Tensor, Tensor]:
    """Weight, bias, pixels: logits near 1e6, where float32 has steps of 1/16 and sees ties.

    In truth the first class leads by 0.012 on two of the three images, and lags by 0.0005 on the last.
    """
    weight = torch.zeros(2, 48)
    weight[:, 0] = 2e6
    weight[0, 1], weight[1, 2] = 0.025, 0.001
    pixels = GREY.clone()
    pixels[2, 0, 0, 1] = 0
    return weight, torch.zeros(2), pixels


def test_near_ties_are_settled_in_float64():
    weight, bias, pixels = tied()
    classifier = Affine(weight, bias, tie_tolerance=0.05)
    logits = classifier.logits(pixels)
    assert (logits[:, 0] == logits[:, 1]).all()
    attack = Planted(points=lambda origin, step: origin)
    outcome = run_attack(attack, Misclassify(classifier, LABELS), pixels, KEYS, THREAT, seed=0)
    assert outcome.near_tie.all()
    assert outcome.clean.broken.tolist() == [False, False, True]
    assert outcome.broken.tolist() == [False, False, True]
    assert outcome.final.broken.tolist() == [False, False, True]
    assert outcome.false_claims.tolist() == [1, 1, 0]
    assert (outcome.final.margin == 0).all()  # of float32, as stored


@pytest.mark.parametrize(
    "classifier", [Affine(*tied()[:2]), Free(Affine(*tied()[:2]).logits)], ids=["strict", "float32"]
)
def test_without_tolerance_or_float64_a_tie_is_a_break(classifier):
    outcome = run_attack(PGD(), Misclassify(classifier, LABELS), tied()[2], KEYS, THREAT, seed=0)
    assert not outcome.near_tie.any()
    assert outcome.clean.broken.all()


def test_a_clear_break_is_not_a_near_tie():
    task = AffineTask(2, seed=0)
    tolerant = Affine(task.weight, task.bias, tie_tolerance=2.0**-13)  # below the grid of the margins
    objective = Misclassify(tolerant, task.labels)
    outcome = run_attack(PGD(), objective, task.pixels, task.keys, THREAT, seed=0)
    assert outcome.broken.any()
    assert not outcome.near_tie.any()


# Numbers that are none


def test_a_model_that_only_says_nan_is_wrong_about_everything_and_asked_once():
    calls = []

    def call(pixels):
        calls.append(len(pixels))
        return pixels.flatten(1)[:, :3] * torch.nan

    outcome = run_attack(PGD(), Misclassify(Free(call), LABELS), GREY, KEYS, THREAT, seed=0)
    assert outcome.broken.all()
    assert (outcome.forwards == 1).all()
    assert torch.equal(outcome.adversarial, GREY)
    assert calls == [16]


@pytest.mark.parametrize("threat", [THREAT, ThreatModel(norm="l2", eps="1")], ids=["linf", "l2"])
def test_a_nan_under_attack_is_a_break_of_that_sample_only(threat):
    def call(pixels):
        logits = brightness_logits(pixels)
        return torch.where((pixels.mean((1, 2, 3)) < 0.495)[:, None], torch.nan, logits)

    pixels = GREY.clone()
    pixels[1] = 0.1  # NaN from the start
    pixels[2] = 0.9
    labels = torch.tensor([1, 1, 1])  # class 0 has it: brightness must fall for image 2, and class 1 lose
    labels[0] = 0
    objective = Misclassify(Free(call), labels, loss="margin")
    outcome = run_attack(PGD(start_at="zero"), objective, pixels, KEYS, threat, seed=0)
    assert outcome.clean.broken.tolist() == [False, True, False]
    assert outcome.broken.tolist() == [True, True, False]
    assert outcome.best_loss[torch.tensor([0, 2])].isfinite().all()

    darker = Misclassify(Free(lambda x: call(x).flip(1)), 1 - labels, loss="margin")
    outcome = run_attack(PGD(start_at="zero"), darker, pixels, KEYS, threat, seed=0)
    assert outcome.broken.tolist() == [True, True, False]


def test_a_nan_that_the_attack_walks_into_is_found_and_is_finite_on_record():
    """The gradient leads into a region where the model overflows: wrong there, and the images stay numbers."""

    def call(pixels):
        logits = brightness_logits(pixels)
        return torch.where((pixels.mean((1, 2, 3)) > 0.51)[:, None], torch.nan, logits)

    outcome = run_attack(PGD(), Misclassify(Free(call), LABELS), GREY, KEYS, THREAT, seed=0)
    assert outcome.broken.all()
    assert THREAT.contains(outcome.adversarial, GREY).all()
    assert outcome.final.logits.isnan().all()
    assert outcome.best_loss.isfinite().all()


# Traces


class Moody(nn.Module):
    """A network in a mixed state, which draws from every global generator and may fail at its n-th call."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
        self.body[2].eval()
        self.body[1].bias.requires_grad_(False)
        self.body[4].weight.grad = torch.full((2, 8), 5.0)
        self.fail_at, self.calls = fail_at, 0

    def forward(self, pixels):
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyError("planted")
        assert not any(module.training for module in self.modules())
        assert not any(parameter.requires_grad for parameter in self.parameters())
        noise = torch.rand(len(pixels), 2) * 1e-3 + python_random.random() * 1e-3 + np.random.rand() * 1e-3  # noqa: NPY002
        return self.body(pixels) + noise


def everything(module: nn.Module) -> dict[str, object]:
    """What an attack could leave changed."""
    hooks = [
        len(getattr(m, name))
        for m in module.modules()
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    ]
    numpy_state = np.random.get_state()  # noqa: NPY002
    return {
        "modes": [m.training for m in module.modules()],
        "wants": [p.requires_grad for p in module.parameters()],
        "grads": [None if p.grad is None else p.grad.tolist() for p in module.parameters()],
        "weights": {name: value.tolist() for name, value in module.state_dict().items()},
        "hooks": hooks,
        "python": python_random.getstate(),
        "numpy": (numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]),
        "torch": torch.get_rng_state().tolist(),
        "dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "products": torch.get_float32_matmul_precision(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32),
        "threads": torch.get_num_threads(),
    }


def moody_task(fail_at: int | None = None) -> tuple[Moody, Misclassify, Tensor, list[str]]:
    module = Moody(fail_at)
    pixels = natural_like(20, 4)
    return module, Misclassify(Free(module), torch.arange(20) % 2), pixels, [str(i) for i in range(20)]


@pytest.mark.parametrize("name", ATTACKS.names("image"))
def test_an_attack_leaves_no_trace(name):
    module, objective, pixels, keys = moody_task()
    objective.classifier.train()
    module.body[2].eval()
    before, pixels_before = everything(objective.classifier), pixels.clone()
    assert True in before["modes"]
    assert False in before["modes"]
    outcome = run_attack(ATTACKS.create(name), objective, pixels, keys, THREAT, seed=0)
    assert module.calls > 3
    assert everything(objective.classifier) == before
    assert torch.equal(pixels, pixels_before)
    assert all(not column.requires_grad for column in vars(outcome).values() if isinstance(column, Tensor))


@pytest.mark.parametrize("fail_at", [1, 2, 3, 6])
def test_an_exception_inside_the_model_leaves_no_trace(fail_at):
    module, objective, pixels, keys = moody_task(fail_at)
    objective.classifier.train()
    module.body[2].eval()
    before = everything(objective.classifier)
    settings = DriverSettings(tile=16)
    with pytest.raises(KeyError, match="planted"):
        run_attack(PGD(), objective, pixels, keys, THREAT, seed=0, settings=settings)
    assert everything(objective.classifier) == before


def test_the_probe_leaves_no_trace():
    module, objective, pixels, _ = moody_task()
    module.train()
    before = everything(objective.classifier)
    row_invariance(objective, pixels, DriverSettings())
    assert everything(objective.classifier) == before


def test_pixels_that_want_a_gradient_do_not_tie_the_outcome_to_a_graph():
    task = AffineTask(2, seed=0)
    pixels = task.pixels.clone().requires_grad_(True)
    outcome = run_attack(PGD(), Misclassify(task.classifier, task.labels), pixels, task.keys, THREAT, seed=0)
    assert not outcome.adversarial.requires_grad
    assert pixels.grad is None


# The caller's switches


@contextmanager
def coarse_products() -> Iterator[None]:
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    "switch",
    [lambda: torch.autocast("cpu", torch.bfloat16), coarse_products, torch.no_grad],
    ids=["autocast", "matmul precision", "no_grad"],
)
def test_float32_is_float32_whatever_the_caller_has_switched_on(clip_task, switch):
    task = clip_task(samples=16)
    threat, seen = ThreatModel(eps="1/510"), []

    def run():
        return run_attack(PGD(steps=3), task.objective(), task.pixels, task.keys, threat, seed=0)

    plain = run()
    with switch():
        before = torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")
        other = run()
        assert (torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")) == before
        spy = Free(lambda x: seen.append(torch.get_float32_matmul_precision()) or brightness_logits(x))
        run_attack(PGD(steps=1), Misclassify(spy, LABELS), GREY, KEYS, THREAT, seed=0)
    assert set(seen) == {"highest"}
    assert torch.equal(other.final.logits, plain.final.logits)
    assert torch.equal(other.adversarial, plain.adversarial)
    assert torch.equal(other.broken, plain.broken)
