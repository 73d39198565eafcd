"""Draws of a randomised classifier belong to the sample: not to its batch, its place in it, or who was dropped."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ironclip.attacks.apgd import APGD, TargetedAPGD
from ironclip.attacks.driver import DriverSettings, run_attack
from ironclip.attacks.expectation import MisclassifyRandomised
from ironclip.attacks.threat_model import ThreatModel
from ironclip.attacks.transfer import craft
from ironclip.errors import ConfigError
from ironclip.evaluation.probes import Probe
from ironclip.evaluation.specialised import expectation_gap, paired_shares, share_correct
from ironclip.models.randomised import RandomisedClassifier
from ironclip.models.zero_shot import PythonClassifier
from ironclip.randomness import SampleRandom

KEYS = tuple(f"key {index}" for index in range(20))
GAME = ThreatModel(eps="8/255")


class Noisy(RandomisedClassifier):
    """A linear model of noisy pixels."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(4, 48, generator=torch.Generator().manual_seed(0))
        self.weight = torch.nn.Parameter(weight - weight.mean(dim=1, keepdim=True))

    @property
    def device(self):
        return torch.device("cpu")

    def drawn_logits(self, pixels, random):
        return (pixels + 0.1 * random.normal(pixels.shape[1:], "noise")).flatten(1) @ self.weight.T


class Coin(RandomisedClassifier):
    """Right with the probability that the image's brightness is."""

    @property
    def device(self):
        return torch.device("cpu")

    def drawn_logits(self, pixels, random):
        right = random.uniform((), 0, 1, "coin") < pixels.mean(dim=(1, 2, 3))
        return torch.stack([right.float(), 1 - right.float()], dim=1)


def pixels() -> torch.Tensor:
    return torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def objective(loss: str = "margin") -> MisclassifyRandomised:
    labels = (pixels().flatten(1) @ Noisy().weight.T).argmax(dim=1)
    return MisclassifyRandomised(Noisy(), labels, loss, random=SampleRandom(0, KEYS, "draws"))


def test_each_look_is_another_draw_and_the_same_one_again_from_the_start():
    one, again = objective(), objective()
    first, second = one.evaluate(pixels()).logits, one.evaluate(pixels()).logits
    assert not torch.isclose(first, second).any()
    assert torch.equal(again.evaluate(pixels()).logits, first)


def test_a_draw_knows_nothing_of_the_batch():
    together, alone = objective(), objective()
    for _ in range(3):
        expected = together.evaluate(pixels()).logits
        rows = torch.tensor([7, 3])
        torch.testing.assert_close(alone.take(rows).evaluate(pixels()[rows]).logits, expected[rows])


def test_copies_in_a_batch_see_one_draw_and_count_as_one_look():
    one = objective()
    rows = torch.tensor([4, 4, 4, 5])
    logits = one.take(rows).evaluate(pixels()[rows]).logits
    assert torch.equal(logits[0], logits[2])
    assert one.looks == {"key 4": 1, "key 5": 1}


@pytest.mark.parametrize("attack", [APGD(steps=4, eot=3, restarts=2, loss="margin"), TargetedAPGD(steps=3, eot=2)])
def test_neither_tiles_nor_compaction_matter(attack):
    def outcome(**settings):
        driver = DriverSettings(**settings)
        return run_attack(attack, objective(attack.loss), pixels(), KEYS, GAME, seed=0, settings=driver)

    reference = outcome()
    assert 0 < int(reference.broken.sum()) < 20
    for other in (outcome(tile=16), outcome(compact=False)):
        assert torch.equal(other.broken, reference.broken)
        assert torch.equal(other.adversarial, reference.adversarial)


def test_crafted_points_hang_on_the_seed_and_not_on_the_global_state():
    def points(seed: int):
        return craft(APGD(steps=3, eot=2, loss="margin"), objective(), pixels(), KEYS, GAME, seed=seed)

    before = torch.get_rng_state()
    first = points(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(points(0), first)
    assert not torch.equal(points(1), first)


def test_logits_without_streams_are_drawn_from_the_global_state():
    model = Noisy()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = model.logits(pixels()), model.logits(pixels())
        torch.manual_seed(0)
        assert torch.equal(model.logits(pixels()), first)
    assert not torch.equal(first, second)


def coin_probe(samples: int = 20) -> Probe:
    images = torch.linspace(0, 1, samples)[:, None, None, None].expand(-1, 3, 4, 4).contiguous()
    labels = torch.zeros(samples, dtype=torch.int64)
    return Probe(classifier=Coin(), pixels=images, labels=labels, keys=KEYS[:samples], threat=GAME)


def test_the_share_of_right_draws_is_the_probability():
    probe = coin_probe()
    found, exact = share_correct(probe, probe.pixels, draws=400), probe.pixels[:, 0, 0, 0].double().numpy()
    assert found[0] == 0
    assert found[-1] == 1
    assert (abs(found - exact) <= 4.5 * (exact * (1 - exact) / 400) ** 0.5 + 1e-9).all()
    small = replace(probe, pixels=probe.pixels[5:8], labels=probe.labels[5:8], keys=KEYS[5:8])
    assert (share_correct(small, small.pixels, draws=400) == found[5:8]).all()


def test_the_interval_of_shares_is_as_wide_as_their_spread():
    ones = torch.ones(50).double().numpy()
    certain = paired_shares(ones, 0 * ones, 100)
    assert (certain.low, certain.estimate, certain.high) == (1, 1, 1)
    half = paired_shares(ones, ones / 2, 100)
    assert half.low < 0.5 < half.high
    # Draws alone: 50 x 100 of them, at a half.
    assert 2 < (half.high - half.low) / (0.25 / 5000) ** 0.5 < 6
    assert paired_shares(ones / 2, ones / 2, 100).low < 0


def test_a_model_that_hides_its_draws_is_refused():
    model = PythonClassifier(lambda images: images.flatten(1)[:, :4])
    probe = replace(coin_probe(), classifier=model)
    with pytest.raises(
        ConfigError, match=r"PythonClassifier does not say what it draws from.*\n.*RandomisedClassifier"
    ):
        share_correct(probe, probe.pixels)
    with pytest.raises(ConfigError, match="does not say what it draws from"):
        expectation_gap(probe)
    with pytest.raises(ConfigError, match="0 draws to judge by"):
        share_correct(coin_probe(), coin_probe().pixels, draws=0)
