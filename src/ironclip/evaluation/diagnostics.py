"""Signs that a robust accuracy is not what it seems, as far as stored rows show them; and the verdict over all signs.

Each check is one number against a threshold. A check of survivors (right before the attack and not broken) passes as
`vacuous` where there are none. A check that was not run blocks trust as a failed one does. What needs the model itself
is in `probes` and `searches`, what a profile is made of in `diagnosis`.

Source: evaluation plan 3.1, thresholds version 2; the signs are those of Athalye et al., ICML 2018, arXiv:1802.00420,
Carlini et al., 2019, arXiv:1902.06705, AutoAttack's flags, and Pintor et al., NeurIPS 2022, arXiv:2106.09947.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ironclip.errors import DataError, ValueRangeError
from ironclip.evaluation.metrics import clean_correct, robust_correct

CHECKS_VERSION = 2
"""2: `restart_spread` allows for two samples where these are more than 2 % (docs/decisions/012)."""

Flags = npt.NDArray[np.bool_]
Profile = Literal["light", "full"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One sign, measured.

    Attributes:
        name: As the verdict names it.
        value: What was measured; None where nothing could be (`vacuous`, `not_run`) or no limit was reached.
        threshold: The check fails above it (`min_progress`: below); None where the value is only reported.
        state: `vacuous` passes.
        is_info: Reported, without a say in the verdict.
    """

    name: str
    value: float | None
    threshold: float | None
    state: Literal["passed", "failed", "vacuous", "not_run"]
    is_info: bool = False


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was found of a row.

    Attributes:
        profile: Which checks were made.
        samples: How many samples were probed.
        checks: Each with its value, threshold and state.
        verdict: `("trusted",)`, `("trusted(light)",)`, or the sorted names of what failed or was not run.
        checks_version: Of the thresholds.
    """

    profile: Profile
    samples: int
    checks: tuple[Check, ...]
    verdict: tuple[str, ...]
    checks_version: int = CHECKS_VERSION


def verdict(checks: Sequence[Check]) -> tuple[str, ...]:
    """Return `("trusted",)`, or the sorted names of what failed, and `not_run:NAME` of what was not run.

    Raises:
        ValueRangeError: There are no checks, or two of one name.
    """
    names = [check.name for check in checks]
    if not names or len(set(names)) < len(names):
        raise ValueRangeError(f"a verdict over the checks {names}.", "Give each check once, and at least one.")
    words = {"failed": "", "not_run": "not_run:"}
    reasons = [words[check.state] + check.name for check in checks if check.state in words and not check.is_info]
    return tuple(sorted(reasons)) or ("trusted",)


def not_run(name: str) -> Check:
    """Return the check that nobody measured."""
    return Check(name=name, value=None, threshold=None, state="not_run")


def probability_output(rows: pa.Table) -> Check:
    """Find a model that returns probabilities for logits: the share of samples whose logits are in [0, 1] and sum to 1.

    Raises:
        DataError: There are no rows.
    """
    _verdicts(rows)
    alike = [
        min(logits) >= 0 and max(logits) <= 1 and abs(sum(logits) - 1) <= 1e-5
        for logits in rows["logits_clean"].to_pylist()
        if logits
    ]
    if not alike:
        return not_run("probability_output")
    share = sum(alike) / len(alike)
    state: Literal["passed", "failed"] = "failed" if share == 1 else "passed"
    return Check(name="probability_output", value=share, threshold=1.0, state=state)


def invalid_outputs(rows: pa.Table) -> Check:
    """Count samples for which the attack claimed a point outside its ball, or whose logits are not finite.

    Raises:
        DataError: There are no rows.
    """
    _verdicts(rows)
    wrong = _column(rows, "invalid").astype(bool)
    for side in ("logits_clean", "logits_adv"):
        wrong = wrong | np.array([not np.isfinite(logits).all() for logits in rows[side].to_pylist()])
    return _above("invalid_outputs", float(wrong.sum()), 0)


def attack_did_nothing(rows: pa.Table) -> Check:
    """Find an attack that returned every survivor as it was: 1 where it did.

    Raises:
        DataError: There are no rows.
    """
    spent = _survivors_norm(rows)
    if not spent.size:
        return _vacuous("attack_did_nothing", 0)
    return _above("attack_did_nothing", float(spent.max() == 0), 0)


def min_progress(rows: pa.Table, eps: Fraction) -> Check:
    """Measure how far survivors were moved: the median distance from the clean image, as a share of eps.

    Raises:
        DataError: There are no rows.
        ValueRangeError: `eps` is not positive.
    """
    if eps <= 0:
        raise ValueRangeError(f"eps is {eps}.", "Give the radius of the ball, above 0.")
    spent = _survivors_norm(rows)
    if not spent.size:
        return _vacuous("min_progress", 0.05)
    share = float(np.median(spent)) / float(eps)
    return Check(name="min_progress", value=share, threshold=0.05, state="failed" if share < 0.05 else "passed")


def dtype_gap(rows: pa.Table) -> Check:
    """Measure the share of samples with a success that the search claimed and float32 refused.

    What only a search in float32 would find is not seen here.

    Raises:
        DataError: There are no rows.
    """
    _verdicts(rows)
    return _above("dtype_gap", float((_column(rows, "false_claims") > 0).mean()), 0.005)


def restart_spread(rows: pa.Table, restarts: int) -> Check:
    """Measure what later restarts took: robust accuracy after the first less that after all, at least 5.

    Raises:
        DataError: There are no rows.
    """
    clean, robust = _verdicts(rows)
    if restarts < 5:
        return not_run("restart_spread")
    late = clean & ~robust & (_column(rows, "restart") >= 1)
    return _above("restart_spread", float(late.mean()), max(0.02, 2 / late.size))


def ce_margin_gap(by_ce: pa.Table, by_margin: pa.Table, *, margin_was_run_in_full: bool = False) -> Check:
    """Measure how much a margin loss takes beyond the cross-entropy at the same budget: its saturation.

    Args:
        by_ce: Rows of the attack on the cross-entropy.
        by_margin: Rows of the attack on a margin or DLR loss, of the same samples.
        margin_was_run_in_full: The result already rests on the stronger loss, so this is for information only.

    Raises:
        DataError: There are no rows, or the samples differ.
    """
    first, second = _robust([by_ce, by_margin])
    gap = _lost(first, second)
    state: Literal["passed", "failed"] = "failed" if gap > 0.05 else "passed"
    return Check(name="ce_margin_gap", value=gap, threshold=0.05, state=state, is_info=margin_was_run_in_full)


def step_doubling(once: pa.Table, twice: pa.Table) -> Check:
    """Measure what twice the steps take: robust accuracy after N less that after 2 N steps.

    Raises:
        DataError: There are no rows, or the samples differ.
    """
    first, second = _robust([once, twice])
    if not first.any():
        return _vacuous("step_doubling", 0.01)
    return _above("step_doubling", _lost(first, second), max(0.01, 2 / first.size))


def fgsm_beats_pgd(fgsm: pa.Table, pgd: pa.Table) -> Check:
    """Count samples that one step breaks and many steps from the same point do not; raises as `step_doubling`."""
    return _beaten("fgsm_beats_pgd", [pgd], fgsm, share=0.005)


def noise_beats_attack(attacks: Sequence[pa.Table], noise: pa.Table) -> Check:
    """Count survivors of all attacks that random corners of the ball break; raises as `step_doubling`."""
    return _beaten("noise_beats_attack", attacks, noise, share=0, least=0)


def black_box_stronger(white_box: Sequence[pa.Table], black_box: pa.Table) -> Check:
    """Count survivors of all white-box attacks that a search without gradients breaks; raises as `step_doubling`."""
    return _beaten("black_box_stronger", white_box, black_box, share=0.002)


def transfer_stronger(white_box: Sequence[pa.Table], transfer: pa.Table) -> Check:
    """Count survivors of all white-box attacks that images made for other models break; raises as `step_doubling`."""
    return _beaten("transfer_stronger", white_box, transfer, share=0.005)


def bpda_stronger(attacks: Sequence[pa.Table], straight: pa.Table) -> Check:
    """Count survivors that a stand-in for the defence's gradient breaks; raises as `step_doubling`."""
    return _beaten("bpda_stronger", attacks, straight, share=0.02, least=0)


def grey_attack(attacks: Sequence[pa.Table], grey: pa.Table) -> Check:
    """Count survivors, at a radius of at least 1/2, that a grey image breaks; raises as `step_doubling`."""
    return _beaten("grey_attack", attacks, grey, share=0, least=0)


def eps_monotone(by_eps: Mapping[Fraction, pa.Table]) -> Check:
    """Measure the largest rise of robust accuracy from a smaller to a larger radius.

    Args:
        by_eps: Rows for each radius, of the same samples and attack; at least two.

    Raises:
        DataError: There are no rows, or the samples differ.
    """
    if len(by_eps) < 2:
        return not_run("eps_monotone")
    flags = _robust([by_eps[eps] for eps in sorted(by_eps)])
    counts = np.array([np.count_nonzero(one) for one in flags])
    rise = (counts - np.minimum.accumulate(counts)).max() / flags[0].size
    return _above("eps_monotone", float(rise), 0.01)


def huge_eps_not_zero(rows: pa.Table, eps: Fraction, *, is_natural: bool = True) -> Check:
    """Measure what survives a radius that leaves nothing of the image.

    Args:
        rows: At `eps` of at least 64/255 in linf. From 1/2 on every image can become grey, so that no more than the
            largest class may be right; at 1 any image can become any other.
        eps: The radius.
        is_natural: Natural images; elsewhere classes can truly lie 64/255 apart, and the finding is for information.

    Raises:
        DataError: There are no rows.
        ValueRangeError: `eps` is below 64/255.
    """
    if eps < Fraction(64, 255):
        raise ValueRangeError(f"eps is {eps}, which is not huge.", "Give rows at 64/255 or more.")
    _, robust = _verdicts(rows)
    _, sizes = np.unique(_column(rows, "y"), return_counts=True)
    limit = 0.0 if eps >= 1 else float(sizes.max() / sizes.sum()) if eps >= Fraction(1, 2) else 0.01
    share = float(robust.mean())
    return Check(
        name="huge_eps_not_zero",
        value=share,
        threshold=limit,
        state="failed" if share > limit else "passed",
        is_info=not is_natural and eps < Fraction(1, 2),
    )


def eps_needed_for_zero(by_eps: Mapping[Fraction, pa.Table]) -> Check:
    """Report the smallest radius at which less than 1 % is left; None where there is none.

    Raises:
        DataError: There are no rows, or the samples differ.
    """
    radii = sorted(by_eps)
    shares = [float(flags.mean()) for flags in _robust([by_eps[eps] for eps in radii])]
    enough = [float(eps) for eps, share in zip(radii, shares, strict=True) if share < 0.01]
    value = enough[0] if enough else None
    return Check(name="eps_needed_for_zero", value=value, threshold=None, state="passed", is_info=True)


def _beaten(name: str, attacks: Sequence[pa.Table], other: pa.Table, *, share: float, least: int = 2) -> Check:
    *ours, theirs = _robust([*attacks, other])
    standing = np.logical_and.reduce(ours)
    limit = max(share * standing.size, least)
    if not standing.any():
        return _vacuous(name, limit)
    return _above(name, float((standing & ~theirs).sum()), limit)


def _lost(first: Flags, second: Flags) -> float:
    """Return the share of samples lost from the first to the second, exact where it meets a threshold."""
    return (np.count_nonzero(first) - np.count_nonzero(second)) / first.size


def _above(name: str, value: float, threshold: float) -> Check:
    return Check(name=name, value=value, threshold=threshold, state="failed" if value > threshold else "passed")


def _vacuous(name: str, threshold: float) -> Check:
    return Check(name=name, value=None, threshold=threshold, state="vacuous")


def _verdicts(rows: pa.Table) -> tuple[Flags, Flags]:
    """Return which samples are right before the attack, and which under it."""
    if not rows.num_rows:
        raise DataError("there are no rows to diagnose.", "Evaluate at least one sample.")
    labels, pred, broken = (_column(rows, name) for name in ("y", "pred_clean", "broken"))
    return clean_correct(labels, pred), robust_correct(labels, pred, broken)


def _robust(units: Sequence[pa.Table]) -> list[Flags]:
    """Return which samples are robust in each unit, in order of their ids."""
    units = [rows.sort_by("sample_id") for rows in units]
    for rows in units:
        if not rows["sample_id"].equals(units[0]["sample_id"]):
            raise DataError(
                f"{units[0].num_rows} and {rows.num_rows} rows that are to be compared are not of the same samples.",
                "Run both attacks on the same probe samples.",
            )
    return [_verdicts(rows)[1] for rows in units]


def _survivors_norm(rows: pa.Table) -> npt.NDArray[np.float64]:
    _, robust = _verdicts(rows)
    spent: npt.NDArray[np.float64] = _column(rows, "norm")[robust]
    return spent


def _column(rows: pa.Table, name: str) -> npt.NDArray[Any]:
    return np.asarray(rows[name].to_numpy(zero_copy_only=False))
