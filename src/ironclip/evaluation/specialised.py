"""Signs that only an attack fitted to a defence can show: means over draws, a stand-in for the gradient, a grey image.

These runs need to know the defence, so no profile makes them by itself. What a randomised model withstands is a share
of its draws: nobody is taken off the list for one lucky draw, and every share comes from draws that no search has seen.

Source: evaluation plan 2.12, 3.1 (the flags of specialised runs) and 8 (cluster bootstrap).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from ironclip.attacks.apgd import APGD
from ironclip.attacks.base import Attack
from ironclip.attacks.expectation import MisclassifyRandomised
from ironclip.attacks.objectives import Misclassify, is_correct
from ironclip.attacks.transfer import craft, judge, transfer
from ironclip.errors import ConfigError
from ironclip.evaluation import diagnostics
from ironclip.evaluation.diagnostics import Check
from ironclip.evaluation.intervals import BOOTSTRAP_DRAWS, Interval
from ironclip.evaluation.probes import Probe
from ironclip.models.randomised import RandomisedClassifier
from ironclip.models.zero_shot import Classifier
from ironclip.randomness import SampleRandom

FRESH_DRAWS = 100
"""Draws of a model by which a point is judged."""


@dataclass(frozen=True)
class ExpectationGap:
    """What means over draws take from a randomised model.

    Attributes:
        once: `[N]` in [0, 1], share of fresh draws in which each sample stands after the attack with one draw a look.
        often: The same after the attack with means over many draws.
        difference: Mean of the first less mean of the second, with its paired interval.
    """

    once: npt.NDArray[np.float64]
    often: npt.NDArray[np.float64]
    difference: Interval


def share_correct(probe: Probe, points: Tensor, *, draws: int = FRESH_DRAWS) -> npt.NDArray[np.float64]:
    """Return in what share of fresh draws a randomised model is right, `[N]` in [0, 1] (p_correct in the plan).

    Args:
        probe: The samples; its classifier is a RandomisedClassifier.
        points: `[N, 3, H, W]`, clean or attacked images of these samples.
        draws: How many, each a function of (seed, sample key, number of the draw).

    Raises:
        ConfigError: The classifier does not say what it draws from, or no draws.
    """
    classifier = _randomised(probe)
    if draws < 1:
        raise ConfigError(f"{draws} draws to judge by.", "Give at least 1.")
    right = torch.zeros(len(probe.keys), dtype=torch.int64)
    with torch.no_grad(), probe.undisturbed():
        for rows, count in probe.tiles():
            tile, labels = points[rows].to(classifier.device), probe.labels[rows].to(classifier.device)
            for draw in range(draws):
                streams = SampleRandom(probe.seed, probe.keys, f"fresh|{draw}").take(rows)
                answers = is_correct(classifier.drawn_logits(tile, streams), labels, probe.groups)
                right[rows[:count]] += answers[:count].cpu().long()
    return right.double().numpy() / draws


def expectation_gap(
    probe: Probe, attack: APGD | None = None, *, eot: int = 20, draws: int = FRESH_DRAWS
) -> ExpectationGap:
    """Attack a randomised model with one draw a look and with means over many, and judge both by fresh draws.

    Args:
        probe: The samples; its classifier is a RandomisedClassifier.
        attack: Settings that both share but for `eot`; APGD-100 on the margin unless given.
        eot: Draws a look of the stronger attack.
        draws: Fresh draws by which points are judged.

    Raises:
        ConfigError: The classifier does not say what it draws from.
    """
    classifier, attack = _randomised(probe), attack or APGD(loss="margin")
    shares = []
    for many in (1, eot):
        objective = MisclassifyRandomised(
            classifier,
            probe.labels.to(classifier.device),
            attack.loss,
            groups=probe.groups,
            random=SampleRandom(probe.seed, probe.keys, f"eot {many}"),
        )
        points = craft(
            replace(attack, eot=many),
            objective,
            probe.pixels,
            probe.keys,
            probe.threat,
            seed=probe.seed,
            settings=probe.settings,
        )
        shares.append(share_correct(probe, points, draws=draws))
    return ExpectationGap(shares[0], shares[1], paired_shares(shares[0], shares[1], draws))


def eot_stronger(gap: ExpectationGap) -> Check:
    """Fail where means over draws take more than 2 points beyond chance: one draw a look was too weak an attack.

    Within the interval of chance the difference is reported and passes.
    """
    value = gap.difference.estimate
    failed = value > 0.02 and gap.difference.low > 0
    return Check(name="eot_stronger", value=value, threshold=0.02, state="failed" if failed else "passed")


def bpda_stronger(probe: Probe, attacked: pa.Table, attack: Attack, straight: Classifier) -> Check:
    """Fail where an attack that replaces the defence's gradient by a stand-in breaks more than 2 points of survivors.

    Args:
        probe: The samples and the defended model.
        attacked: Rows of the attack that is judged, of the same samples.
        attack: What the adversary runs.
        straight: The defence with gradients (models.straight_through.StraightThrough).

    Raises:
        DataError: There are no rows, or the samples differ.
    """
    surrogate = Misclassify(straight, probe.labels.to(straight.device), attack.loss, groups=probe.groups)
    outcome = transfer(
        attack,
        surrogate,
        probe.objective("margin"),
        probe.pixels,
        probe.keys,
        probe.threat,
        seed=probe.seed,
        settings=probe.settings,
    )
    return diagnostics.bpda_stronger([attacked], probe.rows(outcome))


def grey_attack(probe: Probe, attack: Attack) -> Check:
    """Count samples that an attack leaves standing at half the range of pixels, and that plain grey breaks."""
    half = replace(probe.threat, eps="1/2")
    attacked = probe.rows(probe.attacked(attack, half))
    grey = torch.full_like(probe.pixels, 0.5)
    outcome = judge(probe.objective("margin"), grey, probe.pixels, probe.keys, half, settings=probe.settings)
    return diagnostics.grey_attack([attacked], probe.rows(outcome))


def paired_shares(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64], draws: int) -> Interval:
    """Return the mean of the first less that of the second, with a bootstrap over samples and then over their draws.

    Args:
        first: `[N]`, shares of `draws` draws.
        second: Of the same samples, by the same number of draws.
        draws: How many.
    """
    generator = np.random.Generator(np.random.Philox(key=0))
    rounds = BOOTSTRAP_DRAWS // 10
    chosen = generator.integers(len(first), size=(rounds, len(first)))
    again = [generator.binomial(draws, share[chosen]) / draws for share in (first, second)]
    low, high = np.quantile((again[0] - again[1]).mean(axis=1), [0.025, 0.975])
    return Interval(float((first - second).mean()), float(low), float(high))


def _randomised(probe: Probe) -> RandomisedClassifier:
    if not isinstance(probe.classifier, RandomisedClassifier):
        raise ConfigError(
            f"{type(probe.classifier).__name__} does not say what it draws from.",
            "Derive the model from RandomisedClassifier and draw from the streams that drawn_logits is given.",
        )
    return probe.classifier
