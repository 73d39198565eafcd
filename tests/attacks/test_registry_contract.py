"""What every registered image attack must do; a new one is tested the day it is registered."""

from __future__ import annotations

import copy
import dataclasses
import re
from itertools import pairwise

import pytest
import torch

from ironclip.attacks.base import ATTACKS, Attack
from ironclip.attacks.driver import run_attack
from ironclip.attacks.objectives import CLASSIFICATION_LOSSES, Misclassify, input_gradient
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError, RegistryError
from ironclip.randomness import SampleRandom
from made_up_classifiers import Free
from quick_attacks import quick

NAMES = ATTACKS.names("image")
LINF, L2 = ThreatModel(eps="1/510"), ThreatModel(norm="l2", eps="1/20")
# Scores lead nowhere in so few queries but in a larger ball.
BY_SCORES = (ThreatModel(eps="1/32"), ThreatModel(norm="l2", eps="2"))


def serves(attack: Attack, threat: ThreatModel) -> bool:
    """Whether the attack knows the norm; one that does not has to say so."""
    try:
        attack.check(threat)
    except ConfigError as error:
        if threat.norm not in str(error):
            raise
        return False
    return True


GAMES = [
    (name, threat)
    for name in NAMES
    for threat in (BY_SCORES if name in ATTACKS.names("score") else (LINF, L2))
    if serves(ATTACKS.create(name), threat)
]
games = pytest.mark.parametrize(("name", "threat"), GAMES, ids=[f"{name} {threat.norm}" for name, threat in GAMES])
each = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def task(clip_task):
    return clip_task(samples=32)


def test_something_is_registered_and_every_attack_serves_linf():
    assert {"fgsm", "pgd", "pgd_m", "pgd_v"} <= set(NAMES)
    assert {name for name, threat in GAMES if threat.norm == "linf"} == set(NAMES)


@each
def test_builds_from_its_defaults(name):
    attack = ATTACKS.create(name)
    assert attack.name == name
    assert attack.loss in CLASSIFICATION_LOSSES
    assert attack.restarts >= 1
    assert dataclasses.is_dataclass(attack)
    with pytest.raises(dataclasses.FrozenInstanceError):
        attack.restarts = 2


@each
def test_goes_round_through_its_repr_and_through_plain_data(name):
    attack = dataclasses.replace(ATTACKS.create(name), restarts=2, loss="margin")
    assert eval(repr(attack), {type(attack).__name__: type(attack)}) == attack
    assert ATTACKS.create(name, dataclasses.asdict(attack)) == attack
    assert attack != ATTACKS.create(name)
    assert hash(attack) == hash(copy.deepcopy(attack))


@each
def test_an_unknown_option_names_the_near_one(name):
    with pytest.raises(ConfigError, match=r'unknown key "retsarts"\. Did you mean "restarts".*\n.*Known keys of'):
        ATTACKS.create(name, {"retsarts": 2}, where=f"--attack {name}")


@each
def test_an_option_of_the_wrong_type_is_named(name):
    with pytest.raises(ConfigError, match=r"attack\.restarts: .*integer.*'many'"):
        ATTACKS.create(name, {"restarts": "many"})


@each
def test_a_misspelt_name_shows_the_near_ones(name):
    with pytest.raises(RegistryError, match=re.escape(f'unknown attack "{name}x". Did you mean "{name}"')):
        ATTACKS.get(f"{name}x")


@each
def test_no_restart_is_refused(name):
    with pytest.raises(ConfigError, match="restarts"):
        ATTACKS.create(name, {"restarts": 0})


@games
def test_stays_in_ball_and_box_and_raises_the_value(name, threat, task):
    objective = task.objective()
    found = quick(name).perturb(objective, task.pixels, threat, SampleRandom(1, task.keys))
    assert found.shape == task.pixels.shape
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert threat.contains(found, task.pixels).all()
    with torch.no_grad():
        before, after = objective.evaluate(task.pixels), objective(found)
    right = ~before.broken  # where the answer is wrong, an attack has nothing to do
    assert (after > before.value)[right].float().mean() > 0.9


@games
def test_a_row_alone_is_the_row_among_others_bit_for_bit_in_float32(name, threat, task):
    """Alone means in the smallest tile, 16 copies of itself."""
    attack, rows = quick(name), torch.tensor([1, 31])
    whole = attack.perturb(task.objective(), task.pixels, threat, SampleRandom(1, task.keys))
    for row in rows.tolist():
        copies = torch.tensor([row] * 16)
        keys = [task.keys[row]] * 16
        alone = attack.perturb(task.objective().take(copies), task.pixels[copies], threat, SampleRandom(1, keys))
        assert torch.equal(alone, whole[copies])


@games
def test_a_row_alone_is_the_row_among_others_in_float64(name, threat, task):
    attack, rows = quick(name), torch.tensor([5])
    with task.classifier.computing(torch.float64):
        whole = attack.perturb(task.objective(), task.pixels.double(), threat, SampleRandom(1, task.keys))
        alone = attack.perturb(
            task.objective().take(rows), task.pixels[rows].double(), threat, SampleRandom(1, [task.keys[5]])
        )
    torch.testing.assert_close(alone, whole[rows], rtol=0, atol=1e-12)


@games
def test_a_larger_ball_is_not_safer(name, threat, task):
    if threat.norm == "l2" and name in ATTACKS.names("training"):
        pytest.skip("absolute steps of 1/255 do not lead anywhere from a start on a large sphere")
    attack, accuracy = quick(name), []
    for share in (0, 0.5, 1, 4):
        game = dataclasses.replace(threat, eps=share * threat.radius)
        outcome = run_attack(attack, task.objective(attack.loss), task.pixels, task.keys, game, seed=0)
        assert game.contains(outcome.adversarial, task.pixels).all()
        accuracy.append(1 - outcome.broken.double().mean().item())
    assert accuracy[0] == 1 - outcome.clean.broken.double().mean().item()  # a ball of one point
    slack = 1.5 / len(task.keys)  # one sample: fixed steps fit one radius better than another
    assert all(later <= earlier + slack for earlier, later in pairwise(accuracy))
    assert accuracy[2] < accuracy[0] - 0.2


@games
def test_more_restarts_are_not_weaker(name, threat, task):
    attack = quick(name)
    once = run_attack(attack, task.objective(), task.pixels, task.keys, threat, seed=0)
    thrice = run_attack(
        dataclasses.replace(attack, restarts=3), task.objective(), task.pixels, task.keys, threat, seed=0
    )
    assert (thrice.broken >= once.broken).all()
    assert (thrice.best_loss >= once.best_loss).all()
    first = once.broken
    assert torch.equal(thrice.adversarial[first], once.adversarial[first])
    assert torch.equal(thrice.forwards[first], once.forwards[first])


@each
def test_counts_its_passes(name, task):
    """By a model that counts rows itself."""

    seen = {"forwards": 0, "backwards": 0}

    def call(pixels):
        seen["forwards"] += len(pixels)
        if pixels.requires_grad:
            pixels.register_hook(lambda gradient: seen.update(backwards=seen["backwards"] + len(gradient)))
        return (pixels * 3).sin().flatten(2).sum(2) - torch.tensor([0, 1e3, 1e3])

    attack, objective = quick(name), Misclassify(Free(call), torch.zeros(16, dtype=torch.int64))
    state = attack.start(objective, task.pixels[:16], LINF, SampleRandom(0, task.keys[:16]))
    while not state.done:
        state = attack.step(objective, state)
    assert state.forwards.sum() == seen["forwards"]
    assert state.backwards.sum() == seen["backwards"]


@each
def test_a_state_may_be_cut_reordered_and_joined(name, task):
    attack, objective = quick(name), task.objective()
    rows = torch.arange(32)
    state = attack.start(objective.take(rows), task.pixels[:32], LINF, SampleRandom(0, task.keys[:32]))
    state = attack.step(objective.take(rows), state)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    parts = [state.take(order[:16]), state.take(order[16:])]
    joined = type(state).cat(parts)
    one, other = attack.step(objective.take(rows), state), attack.step(objective.take(rows[order]), joined)
    assert len(other) == 32
    for field in dataclasses.fields(state):
        before, after = getattr(one, field.name), getattr(other, field.name)
        if isinstance(before, torch.Tensor):
            assert torch.equal(before[order], after), field.name
        else:
            assert before == after


@each
def test_an_empty_batch_comes_back_empty(name, task):
    nothing = torch.arange(0)
    found = quick(name).perturb(task.objective().take(nothing), task.pixels[:0], LINF, SampleRandom(0, []))
    assert found.shape == (0, 3, 32, 32)


def test_gradient_of_an_objective_is_not_kept_between_steps(task):
    """No graph may live on in a state: memory has to stay flat."""
    _, evaluation = input_gradient(task.objective(), task.pixels)
    assert not any(part.requires_grad for part in vars(evaluation).values() if part is not None)
    attack = ATTACKS.create("pgd")
    state = attack.start(task.objective(), task.pixels, LINF, SampleRandom(0, task.keys))
    for _ in range(2):
        state = attack.step(task.objective(), state)
    tensors = [getattr(state, field.name) for field in dataclasses.fields(state)]
    assert not any(tensor.requires_grad for tensor in tensors if isinstance(tensor, torch.Tensor))
