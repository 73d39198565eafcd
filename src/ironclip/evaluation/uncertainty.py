"""How unsure an answer is, from its logits: seven scores, higher where less sure, and the Dirichlet measures in nats.

Logits become Dirichlet concentrations by one of several maps; its name belongs to every number made with it. All is
computed from logarithms of concentrations, which logits of a thousand do not overflow, and without cancellation where
concentrations are large. `losses.uncertainty` has the same measures of concentrations, for training.

Source: evaluation plan 4.1 and 4.2; UCAT, arXiv:2512.12997.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.special import digamma, expit, xlogy

from ironclip.errors import ConfigError
from ironclip.evaluation.calibration import Floats, checked_logits

AlphaMap = Literal["ucat_train", "ucat_eval", "exp", "softplus+1", "relu+1"]
UCAT_TEMPERATURE = 0.07
_LARGE = math.log(30)
"""From here on psi(x + 1) - ln x comes from its series (error below 1e-14)."""
_ROWS = 512
"""Samples at a time: of a thousand classes, a dozen intermediate matrices are then megabytes, whatever N is."""


@dataclass(frozen=True)
class DirichletMeasures:
    """Measures of Dirichlet distributions with K classes and the total concentration a0, `[N]` each, in nats.

    Attributes:
        total: Entropy of the mean shares, in [0, ln K].
        expected: Mean entropy of shares drawn from the distribution: the aleatoric part.
        mutual_information: `total` less `expected`, the epistemic part; about (K - 1) / 2 a0 where a0 is large.
        log_total: ln a0; the vacuity is K / a0, and UCAT's EU is K / (K + a0).
        classes: K.
    """

    total: Floats
    expected: Floats
    mutual_information: Floats
    log_total: Floats
    classes: int

    @property
    def vacuity(self) -> Floats:
        """K / a0: the share of evidence that is missing, in (0, 1] where every concentration is at least 1."""
        with np.errstate(over="ignore"):
            return np.asarray(np.exp(math.log(self.classes) - self.log_total))

    @property
    def ucat_eu(self) -> Floats:
        """K / (K + a0), in (0, 1)."""
        return np.asarray(expit(math.log(self.classes) - self.log_total))


def log_concentration(logits: npt.ArrayLike, alpha_map: AlphaMap, *, logit_scale: float | None = None) -> Floats:
    """Return ln of the Dirichlet concentrations that logits stand for.

    Args:
        logits: `[N, C]`.
        alpha_map: `ucat_train`: exp((cosine + 1) / 0.07), as UCAT trains; `ucat_eval`: exp(softplus(logit)), as its
            published evaluation computes; `exp`: exp(logit); `softplus+1`, `relu+1`: evidence plus one.
        logit_scale: What cosines were multiplied with; `ucat_train` alone needs it.

    Returns:
        Float64 `[N, C]`.

    Raises:
        ConfigError: The map is unknown, or needs a logit scale.
        ShapeError: There is one class.
        ValueRangeError: As in `calibration.probabilities`.
    """
    scores = checked_logits(logits)
    if alpha_map == "exp":
        return scores
    if alpha_map == "ucat_train":
        if logit_scale is None:
            raise ConfigError(
                'alpha_map "ucat_train" reads cosines, and the logit scale that would give them is not known.',
                'Give logit_scale, or another map: "exp".',
            )
        return (scores / logit_scale + 1) / UCAT_TEMPERATURE
    if alpha_map == "ucat_eval":
        return np.logaddexp(0, scores)
    if alpha_map == "softplus+1":
        return np.log1p(np.logaddexp(0, scores))
    if alpha_map == "relu+1":
        return np.log1p(np.maximum(scores, 0))
    raise ConfigError(f'unknown alpha_map "{alpha_map}".', f"Known are: {', '.join(get_args(AlphaMap))}.")


def dirichlet_measures(log_alpha: npt.ArrayLike) -> DirichletMeasures:
    """Compute the measures of Dirichlet distributions.

    Args:
        log_alpha: ln of the concentrations, `[N, C]`; minus infinity stands for 0.

    Raises:
        ShapeError: There is one class.
        ValueRangeError: As in `calibration.probabilities`.
    """
    logs = checked_logits(log_alpha)
    total, information, log_total = _by_rows(_entropy_and_information, logs)
    return DirichletMeasures(total, total - information, information, log_total, logs.shape[1])


def predictive_entropy(logits: npt.ArrayLike) -> Floats:
    """Return the entropy of the softmax, `[N]` in [0, ln C] nats.

    Raises:
        ShapeError: There is one class.
        ValueRangeError: As in `calibration.probabilities`.
    """
    return _by_rows(_softmax_entropy, checked_logits(logits))[0]


def uncertainty_scores(logits: npt.ArrayLike, measures: DirichletMeasures) -> dict[str, Floats]:
    """Return seven scores that say how unsure each answer is, `[N]` each, for rankings.

    Args:
        logits: `[N, C]`.
        measures: Of the concentrations that these logits stand for.

    Returns:
        `doubt` (1 less the confidence, exact also where the confidence rounds to 1), `entropy`, `closeness` (second
        largest less largest logit), `expected_entropy`, `mutual_information`, `vacuity` (as its logarithm), `energy`
        (minus the log of the sum of exponentials).

    Raises:
        ShapeError: There is one class.
        ValueRangeError: As in `calibration.probabilities`.
    """
    scores = checked_logits(logits)
    rest, closeness, largest = _by_rows(_odds_of_the_rest, scores)
    return {
        "doubt": rest / (1 + rest),
        "entropy": predictive_entropy(scores),
        "closeness": closeness,
        "expected_entropy": measures.expected,
        "mutual_information": measures.mutual_information,
        "vacuity": -measures.log_total,
        "energy": -(largest + np.log1p(rest)),
    }


def _by_rows(measure: Callable[[Floats], tuple[Floats, ...]], matrix: Floats) -> tuple[Floats, ...]:
    """Apply what treats rows one by one to some rows at a time: from `[n, C]` to vectors `[n]`, joined to `[N]`."""
    blocks = [measure(matrix[start : start + _ROWS]) for start in range(0, len(matrix), _ROWS)]
    return tuple(np.concatenate(parts) for parts in zip(*blocks, strict=True))


def _entropy_and_information(logs: Floats) -> tuple[Floats, Floats, Floats]:
    """Return total entropy, mutual information and the log of the total concentration."""
    shares, log_total = _softmax(logs)
    # x g(x) goes to 0 with x, but 0 times infinity does not.
    terms = np.where(shares > 0, shares, 0) * np.where(shares > 0, _digamma_beyond_log(logs), 0)
    total = -xlogy(shares, shares).sum(axis=1)
    return total, np.clip(terms.sum(axis=1) - _digamma_beyond_log(log_total), 0, total), log_total


def _softmax_entropy(scores: Floats) -> tuple[Floats]:
    shares, _ = _softmax(scores)
    return (np.asarray(-xlogy(shares, shares).sum(axis=1)),)


def _odds_of_the_rest(scores: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the odds of all answers but the first, second largest less largest logit, and the largest."""
    others, first = scores.copy(), scores.argmax(axis=1)
    rows = np.arange(len(scores))
    largest = scores[rows, first]
    others[rows, first] = -np.inf
    return np.exp(others - largest[:, None]).sum(axis=1), others.max(axis=1) - largest, largest


def _softmax(logs: Floats) -> tuple[Floats, Floats]:
    """Return shares `[N, C]` and the log of the sum `[N]`."""
    largest = logs.max(axis=1)
    odds = np.exp(logs - largest[:, None])
    sums = odds.sum(axis=1)
    return odds / sums[:, None], largest + np.log(sums)


def _digamma_beyond_log(log_x: Floats) -> Floats:
    """psi(x + 1) - ln x."""
    large = log_x > _LARGE
    inverse = np.exp(-np.where(large, log_x, _LARGE))
    square = inverse**2
    series = inverse / 2 - square * (1 / 12 - square * (1 / 120 - square * (1 / 252 - square / 240)))
    small = np.where(large, 0.0, log_x)
    return np.where(large, series, digamma(np.exp(small) + 1) - small)
