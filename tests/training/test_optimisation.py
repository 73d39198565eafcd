"""Optimisers and schedules against numbers worked out by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from ironclip.training.optimisation import build_optimiser, learning_rate
from ironclip.training.recipe import OptimisationSection


def settings(**changes):
    return OptimisationSection.model_validate({"lr": 1e-4, "steps": 5000, **changes})


def updates(settings, start, gradients):
    """Follow one parameter through the optimiser for the given gradients."""
    parameter = torch.nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimiser = build_optimiser([parameter], settings)
    for gradient in gradients:
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimiser.step()
    return parameter.item()


# Schedules


@pytest.mark.parametrize(("step", "rate"), [(0, 1e-7), (499, 5e-5), (999, 1e-4), (1000, 1e-4)])
def test_golden_warmup(step, rate):
    assert learning_rate(step, 5000, settings(warmup_steps=1000)) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize(("step", "share"), [(1000, 1.0), (2000, 0.5 + math.sqrt(2) / 4), (3000, 0.5), (5000, 0.0)])
def test_cosine_to_zero(step, share):
    assert learning_rate(step, 5000, settings(warmup_steps=1000)) == pytest.approx(1e-4 * share, rel=1e-12, abs=1e-19)


def test_cosine_falls_from_the_first_step_without_warmup():
    rates = [learning_rate(step, 50, settings()) for step in range(50)]
    assert rates[0] == 1e-4
    assert all(earlier > later for earlier, later in itertools.pairwise(rates))
    assert 0 < rates[-1] < 2e-3 * rates[0]


def test_constant_schedule():
    rates = {learning_rate(step, 50, settings(schedule="constant", warmup_steps=2)) for step in range(2, 50)}
    assert rates == {1e-4}


def test_constant_warmup():
    """APT and FAP: so many steps at a small rate, then the schedule from its beginning."""
    chosen = settings(warmup="constant", warmup_lr=1e-5, warmup_steps=3)
    assert [learning_rate(step, 10, chosen) for step in range(4)] == [1e-5, 1e-5, 1e-5, 1e-4]


# Optimisers: gradients 0.3 and -0.1 from 2.0, with lr 0.1, decay 0.5


def test_sgd_with_momentum_and_l2():
    velocity = 0.3 + 0.5 * 2.0
    first = 2.0 - 0.1 * velocity
    velocity = 0.9 * velocity + (-0.1 + 0.5 * first)
    expected = first - 0.1 * velocity
    chosen = settings(optimiser="sgd", lr=0.1, momentum=0.9, weight_decay=0.5)
    assert updates(chosen, 2.0, [0.3, -0.1]) == pytest.approx(expected, rel=1e-12)


def adam(start, gradients, *, lr, betas, decay, decoupled):
    value, mean, square = start, 0.0, 0.0
    for count, gradient in enumerate(gradients, start=1):
        if decoupled:
            value -= lr * decay * value
        else:
            gradient += decay * value
        mean = betas[0] * mean + (1 - betas[0]) * gradient
        square = betas[1] * square + (1 - betas[1]) * gradient**2
        value -= lr * (mean / (1 - betas[0] ** count)) / (math.sqrt(square / (1 - betas[1] ** count)) + 1e-8)
    return value


@pytest.mark.parametrize("decoupled", [False, True])
def test_adam_decays_by_l2_and_adamw_beside_the_gradient(decoupled):
    chosen = settings(optimiser="adamw" if decoupled else "adam", lr=0.1, betas=[0.8, 0.95], weight_decay=0.5)
    expected = adam(2.0, [0.3, -0.1], lr=0.1, betas=(0.8, 0.95), decay=0.5, decoupled=decoupled)
    assert updates(chosen, 2.0, [0.3, -0.1]) == pytest.approx(expected, rel=1e-12)


def test_the_two_decays_differ():
    by_name = [
        updates(settings(optimiser=name, lr=0.1, weight_decay=0.5), 2.0, [0.3, -0.1]) for name in ("adam", "adamw")
    ]
    assert abs(by_name[0] - by_name[1]) > 1e-3


def test_defaults_are_those_of_the_papers():
    group = build_optimiser([torch.nn.Parameter(torch.zeros(1))], settings(optimiser="adamw")).param_groups[0]
    assert (group["betas"], group["weight_decay"], group["eps"]) == ((0.9, 0.999), 0.0, 1e-8)
    assert settings(optimiser="sgd").momentum == 0.9


# The engine's first step


def test_first_step_runs_at_the_warmed_up_rate(trainer, weights):
    """D6: the schedule is set before the step that it names, so step 0 of W runs at lr / W."""
    one = trainer(
        {
            "method": {"name": "clean"},
            "optimisation.optimiser": "sgd",
            "optimisation.momentum": 0.0,
            "optimisation.lr": 0.008,
            "optimisation.steps": 8,
            "optimisation.warmup_steps": 4,
        }
    )
    rates, gradients, before = [], {}, weights(one)

    def look(optimiser, *_):
        rates.append(optimiser.param_groups[0]["lr"])
        gradients.update({name: parameter.grad.clone() for name, parameter in one.parameters.items()})

    one.optimiser.register_step_pre_hook(look)
    epoch, samples = next(one.batches(strict=False))
    logged = one.step(samples, epoch)
    assert rates == [pytest.approx(0.002)]
    assert logged["lr"] == rates[0]
    for name, parameter in one.parameters.items():
        torch.testing.assert_close(parameter.detach(), before[name] - 0.002 * gradients[name])
