"""Calibration and uncertainty of one unit: its stored logits, clean and attacked, become figures with intervals.

An answer counts as right as in the tables of accuracy, ties and broken images included, so that the two agree. The
attacked image of a sample that was wrong before any attack is the clean one, that of a broken sample the first break,
where attacks stop: an adversary who went on could make the model surer. Intervals draw images again, 1000 times,
by a fixed stream over sorted sample ids; the clean and the attacked version of an image stay together, and so do two
models on the same images. Source: evaluation plan 4.1 and 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ironclip.errors import DataError
from ironclip.evaluation.calibration import (
    BINS,
    EDGES,
    Bins,
    Flags,
    Floats,
    Temperature,
    adaptive_bins,
    brier_terms,
    classwise_ece,
    equal_width_bins,
    fit_temperature,
    nll_terms,
    probabilities,
)
from ironclip.evaluation.intervals import Interval
from ironclip.evaluation.metrics import clean_correct, robust_correct
from ironclip.evaluation.ranking import aurc, auroc, excess_aurc, weighted_auroc
from ironclip.evaluation.records import UnitRecord
from ironclip.evaluation.uncertainty import (
    AlphaMap,
    dirichlet_measures,
    log_concentration,
    predictive_entropy,
    uncertainty_scores,
)

DRAWS = 1000
SENSITIVITY_BINS = (10, 20)
_BLOCK = 64  # draws that are turned into float64 at a time


@dataclass(frozen=True, kw_only=True)
class ViewCalibration:
    """How well confidence fits one version of the images, clean or attacked.

    Attributes:
        accuracy: Share right, in [0, 1].
        confidence: Mean of the largest probability; above `accuracy` the model is over-confident.
        ece: Expected calibration error over 15 bins of equal width; its bootstrap is biased upwards.
        ece_by_bins: The same with other numbers of bins.
        mce: Largest gap of a bin.
        adaptive_ece: Over 15 bins that hold equally many samples.
        classwise_ece: Mean over classes.
        thresholded_classwise_ece: Mean over classes, of probabilities of at least 1/C.
        brier: In [0, 2].
        nll: In nats.
        aurc: Mean error rate among the most confident.
        excess_aurc: The same, less what the best order would have.
        error_auroc: How well confidence tells right answers from wrong ones; None where all are one of these.
        bins: The reliability diagram.
    """

    accuracy: float
    confidence: float
    ece: Interval
    ece_by_bins: dict[int, float]
    mce: float
    adaptive_ece: float
    classwise_ece: float
    thresholded_classwise_ece: float
    brier: Interval
    nll: Interval
    aurc: float
    excess_aurc: float
    error_auroc: float | None
    bins: Bins


@dataclass(frozen=True, kw_only=True)
class ViewUncertainty:
    """Mean uncertainty about one version of the images; entropies are shares of ln C, the largest possible.

    Attributes:
        entropy: Of the model's probabilities.
        expected_entropy: The aleatoric part, of the Dirichlet distribution.
        mutual_information: The epistemic part.
        ucat_eu: C / (C + total concentration).
    """

    entropy: Interval
    expected_entropy: Interval
    mutual_information: Interval
    ucat_eu: Interval


@dataclass(frozen=True, kw_only=True)
class TemperedCalibration:
    """Calibration after the logits are divided by a temperature that was fitted on other, clean images."""

    temperature: Temperature
    clean: ViewCalibration
    adv: ViewCalibration


@dataclass(frozen=True, kw_only=True)
class UnitCalibration:
    """Calibration and uncertainty of one unit.

    Attributes:
        n: Samples.
        classes: C.
        n_broken: Samples that were right before the attack and wrong after it.
        edges: The rule for a confidence on the edge of two bins.
        alpha_map: How logits were read as Dirichlet concentrations.
        clean: Of the clean images.
        adv: Of the attacked images.
        clean_uncertainty: Of the clean images.
        adv_uncertainty: Of the attacked images.
        attacked_auroc: For each score of uncertainty, how well it tells attacked images from clean ones: 0.5 is blind,
            below it the model is surer under attack.
        broken_auroc: The same over broken samples only; empty where there are none.
        tempered: None unless a temperature was given.
    """

    n: int
    classes: int
    n_broken: int
    edges: str
    alpha_map: AlphaMap
    clean: ViewCalibration
    adv: ViewCalibration
    clean_uncertainty: ViewUncertainty
    adv_uncertainty: ViewUncertainty
    attacked_auroc: dict[str, Interval]
    broken_auroc: dict[str, Interval]
    tempered: TemperedCalibration | None = None


@dataclass(frozen=True)
class _View:
    """One version of the images: logits `[N, C]`, verdicts `[N]`, and what does not change with it."""

    logits: Floats
    hits: Flags
    labels: npt.NDArray[np.int64]
    ids: npt.NDArray[np.str_]


def calibrate_rows(rows: pa.Table, record: UnitRecord, *, temperature: Temperature | None = None) -> UnitCalibration:
    """Compute calibration and uncertainty of a unit.

    Args:
        rows: Of `rows.SCHEMA`, each sample once.
        record: The unit; its game says by what cosines were multiplied. Where it does not, since the model is none of
            image and text, concentrations are exp(logit).
        temperature: From `temperature_of`; figures with and without it are given.

    Raises:
        DataError: There are no rows, no logits were stored, these are of one class only, differ in length between
            rows, or are infinite; names the first such sample.
    """
    clean, adv = _views(rows)
    counts = _bootstrap_counts(len(clean.ids))
    scale = record.threat.record.get("logit_scale")
    alpha_map: AlphaMap = "exp" if scale is None else "ucat_train"
    uncertainty, scores = {}, {}
    for name, view in (("clean", clean), ("adv", adv)):
        measures = dirichlet_measures(log_concentration(view.logits, alpha_map, logit_scale=scale))
        scores[name] = uncertainty_scores(view.logits, measures)
        largest = math.log(measures.classes)
        parts = {
            "entropy": predictive_entropy(view.logits) / largest,
            "expected_entropy": measures.expected / largest,
            "mutual_information": measures.mutual_information / largest,
            "ucat_eu": measures.ucat_eu,
        }
        uncertainty[name] = ViewUncertainty(**_mean_intervals(parts, counts))
    broken = clean.hits & ~adv.hits
    tempered = None
    if temperature is not None:
        tempered = TemperedCalibration(
            temperature=temperature,
            clean=_calibrate(clean, temperature.value, counts),
            adv=_calibrate(adv, temperature.value, counts),
        )
    return UnitCalibration(
        n=len(clean.ids),
        classes=clean.logits.shape[1],
        n_broken=int(broken.sum()),
        edges=EDGES,
        alpha_map=alpha_map,
        clean=_calibrate(clean, 1.0, counts),
        adv=_calibrate(adv, 1.0, counts),
        clean_uncertainty=uncertainty["clean"],
        adv_uncertainty=uncertainty["adv"],
        attacked_auroc=_told_apart(scores["adv"], scores["clean"], np.ones_like(broken), counts),
        broken_auroc=_told_apart(scores["adv"], scores["clean"], broken, counts) if broken.any() else {},
        tempered=tempered,
    )


def temperature_of(validation: pa.Table, judged: pa.Table) -> Temperature:
    """Fit a temperature on the clean logits of validation rows.

    Args:
        validation: Rows of a clean validation split.
        judged: The rows to which the temperature will be applied; they share no sample with `validation`.

    Raises:
        DataError: A sample is in both, or as `calibrate_rows`.
    """
    shared = set(validation["sample_id"].to_pylist()) & set(judged["sample_id"].to_pylist())
    if shared:
        raise DataError(
            f"{len(shared)} samples, {min(shared)} first, would both set the temperature and be judged with it.",
            "Fit the temperature on a validation split of its own.",
        )
    view, _ = _views(validation)
    return fit_temperature(view.logits, view.labels)


def _views(rows: pa.Table) -> tuple[_View, _View]:
    if not rows.num_rows:
        raise DataError("there are no rows to calibrate.", "Evaluate at least one sample.")
    rows = rows.sort_by("sample_id")
    ids, labels, pred, broken = (
        rows[name].to_numpy(zero_copy_only=False) for name in ("sample_id", "y", "pred_clean", "broken")
    )
    ids = ids.astype(str)
    right = {"clean": clean_correct(labels, pred), "adv": robust_correct(labels, pred, broken)}
    clean, adv = (
        _View(_logits(rows, f"logits_{side}", ids), right[side], labels.astype(np.int64), ids)
        for side in ("clean", "adv")
    )
    return clean, adv


def _logits(rows: pa.Table, column: str, ids: npt.NDArray[np.str_]) -> Floats:
    lists = rows[column].combine_chunks()
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    odd = np.flatnonzero(lengths != lengths[0])
    if odd.size:
        raise DataError(
            f"{column} of sample {ids[odd[0]]} has {lengths[odd[0]]} entries, that of {ids[0]} has {lengths[0]}.",
            "Rows of two data sets got into one unit: evaluate again.",
        )
    if lengths[0] < 2:
        raise DataError(
            f"{column} has {lengths[0]} entries a sample.",
            "Calibration needs stored logits of two or more classes.",
        )
    logits: Floats = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float64).reshape(len(ids), -1)
    infinite = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if infinite.size:
        raise DataError(
            f"{column} of {infinite.size} samples, {ids[infinite[0]]} first, are not finite.",
            "Such answers have no confidence; see what the model computes on them.",
        )
    return logits


def _calibrate(view: _View, temperature: float, counts: npt.NDArray[np.uint16]) -> ViewCalibration:
    probs = probabilities(view.logits, temperature)
    confidence = probs.max(axis=1)
    bins = equal_width_bins(confidence, view.hits)
    terms = {"brier": brier_terms(probs, view.labels), "nll": nll_terms(view.logits, view.labels, temperature)}
    classes = probs.shape[1]
    both = 0 < view.hits.sum() < len(view.hits)
    return ViewCalibration(
        accuracy=float(view.hits.mean()),
        confidence=float(confidence.mean()),
        ece=_ece_interval(confidence, view.hits, bins.ece, counts),
        ece_by_bins={number: equal_width_bins(confidence, view.hits, number).ece for number in SENSITIVITY_BINS},
        mce=bins.mce,
        adaptive_ece=adaptive_bins(confidence, view.hits, view.ids).ece,
        classwise_ece=float(np.mean(classwise_ece(probs, view.labels))),
        thresholded_classwise_ece=float(np.mean(classwise_ece(probs, view.labels, at_least=1 / classes))),
        **_mean_intervals(terms, counts),
        aurc=aurc(confidence, view.hits, view.ids),
        excess_aurc=excess_aurc(confidence, view.hits, view.ids),
        error_auroc=auroc(confidence[view.hits], confidence[~view.hits]) if both else None,
        bins=bins,
    )


def _told_apart(
    adv: Mapping[str, Floats], clean: Mapping[str, Floats], kept: Flags, counts: npt.NDArray[np.uint16]
) -> dict[str, Interval]:
    intervals = {}
    for name in adv:
        high, low = adv[name][kept], clean[name][kept]
        intervals[name] = _interval(auroc(high, low), weighted_auroc(high, low, counts[:, kept]))
    return intervals


def _mean_intervals(terms: Mapping[str, Floats], counts: npt.NDArray[np.uint16]) -> dict[str, Interval]:
    columns = np.stack(list(terms.values()), axis=1)
    means = np.concatenate([block @ columns for block in _blocks(counts)]) / len(columns)
    return {name: _interval(float(terms[name].mean()), means[:, index]) for index, name in enumerate(terms)}


def _ece_interval(confidence: Floats, hits: Flags, estimate: float, counts: npt.NDArray[np.uint16]) -> Interval:
    # The error is the sum over bins of |sum of (confidence - hit)| / N: a product with one column a bin.
    index = np.searchsorted(np.arange(1, BINS) / BINS, confidence, side="left")
    gaps = np.zeros((len(confidence), BINS))
    gaps[np.arange(len(confidence)), index] = confidence - hits
    errors = np.concatenate([np.abs(block @ gaps).sum(axis=1) for block in _blocks(counts)]) / len(confidence)
    return _interval(estimate, errors)


def _interval(estimate: float, draws: Floats) -> Interval:
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Interval(estimate, min(float(low), estimate), max(float(high), estimate))


def _bootstrap_counts(n: int) -> npt.NDArray[np.uint16]:
    """Return how often each of n samples is drawn, `[draws, n]`; the same for the same n."""
    generator = np.random.Generator(np.random.Philox(key=0))
    counts = np.empty((DRAWS, n), dtype=np.uint16)
    for row in counts:
        row[:] = np.bincount(generator.integers(0, n, n), minlength=n)
    return counts


def _blocks(counts: npt.NDArray[np.uint16]) -> Iterator[Floats]:
    for start in range(0, len(counts), _BLOCK):
        yield counts[start : start + _BLOCK].astype(np.float64)
