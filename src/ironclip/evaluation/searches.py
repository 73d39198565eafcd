"""Signs that further searches give: other losses, more steps, noise, no gradients, other models, larger balls.

Source: evaluation plan 3.1. Deviations: at eps = 1 the plan swaps images, which breaks every deterministic model by
construction and is left out; the grid of radii and the huge ones are those of linf, in l2 these checks are not made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import pyarrow as pa
import torch

from ironclip.attacks.apgd import APGD
from ironclip.attacks.corners import Corners
from ironclip.attacks.diverse import DiverseInputs
from ironclip.attacks.fgsm import FGSM
from ironclip.attacks.pgd import PGD
from ironclip.attacks.square import Square
from ironclip.attacks.transfer import transfer
from ironclip.evaluation import diagnostics
from ironclip.evaluation.diagnostics import Check, not_run
from ironclip.evaluation.probes import Probe, ce_direction, loss_increases
from ironclip.models.zero_shot import Classifier

HUGE = (Fraction(64, 255), Fraction(1, 2))
GRID = tuple(Fraction(level) / 255 for level in (Fraction(1, 2), 1, 2, 4, 8, 16, 64, 128))


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How hard the searches are; the numbers are the plan's.

    Attributes:
        steps: Of APGD; the long run takes twice as many.
        queries: Of Square.
        corners: Corners of the ball a sample.
        grid_steps: Of PGD at each radius of the grid.
        huge_steps: Of PGD at the huge radii.
    """

    steps: int = 100
    queries: int = 5000
    corners: int = 100
    grid_steps: int = 20
    huge_steps: int = 50


def searches(
    probe: Probe,
    attacked: pa.Table,
    surrogates: Sequence[Classifier],
    effort: Effort,
    *,
    margin_was_run: bool,
    has_gradient: bool,
    is_natural: bool = True,
) -> Iterator[Check]:
    """Yield the checks one by one; those that follow gradients are `not_run` where there are none.

    Args:
        probe: The samples.
        attacked: Rows of the attack that is judged, of the same samples.
        surrogates: Other models over the same classes, whose adversarial images are tried on this one.
        effort: Steps and queries.
        margin_was_run: The attack follows a margin, so that what is found of the cross-entropy is for information.
        has_gradient: Gradients come through.
        is_natural: See `diagnostics.huge_eps_not_zero`.
    """
    yield diagnostics.noise_beats_attack([attacked], _rows(probe, Corners(queries=effort.corners)))
    yield diagnostics.black_box_stronger([attacked], _rows(probe, Square(queries=effort.queries)))
    if surrogates:
        moved = [transferred(probe, surrogate) for surrogate in surrogates]
        yield diagnostics.transfer_stronger([attacked], _either(moved))
    else:
        yield not_run("transfer_stronger")
    if not has_gradient:
        names = ("loss_increases", "ce_margin_gap", "step_doubling", "restart_spread", "fgsm_beats_pgd")
        yield from (not_run(name) for name in (*names, "eps_monotone", "huge_eps_not_zero"))
        return
    by_loss = {loss: APGD(steps=effort.steps, loss=loss) for loss in ("ce", "margin")}
    if torch.float64 in probe.classifier.precisions:
        yield ce_direction(probe)
    yield loss_increases(probe, by_loss["margin"])
    by_margin = _rows(probe, by_loss["margin"])
    yield diagnostics.ce_margin_gap(_rows(probe, by_loss["ce"]), by_margin, margin_was_run_in_full=margin_was_run)
    yield diagnostics.step_doubling(by_margin, _rows(probe, replace(by_loss["margin"], steps=2 * effort.steps)))
    yield diagnostics.restart_spread(_rows(probe, replace(by_loss["margin"], restarts=5)), 5)
    pgd = PGD(steps=20, start_at="zero", loss="margin")
    yield diagnostics.fgsm_beats_pgd(_rows(probe, FGSM(loss="margin")), _rows(probe, pgd))
    if probe.threat.norm == "linf":
        grid = replace(pgd, steps=effort.grid_steps)
        by_eps = {eps: _rows(probe, grid, eps) for eps in GRID}
        yield diagnostics.eps_monotone(by_eps)
        yield diagnostics.eps_needed_for_zero(by_eps)
        for eps in HUGE:
            rows = _rows(probe, replace(pgd, steps=effort.huge_steps), eps)
            check = diagnostics.huge_eps_not_zero(rows, eps, is_natural=is_natural)
            yield check if eps == HUGE[0] else replace(check, name="half_eps_not_grey")


def transferred(probe: Probe, surrogate: Classifier) -> pa.Table:
    """Return rows of this model under images that were made for another one, with momentum and diverse inputs."""
    attack = DiverseInputs()
    outcome = transfer(
        attack,
        replace(probe, classifier=surrogate).objective(attack.loss),
        probe.objective("margin"),
        probe.pixels,
        probe.keys,
        probe.threat,
        seed=probe.seed,
        settings=probe.settings,
    )
    return probe.rows(outcome)


def _rows(probe: Probe, attack: APGD | Corners | FGSM | PGD | Square, eps: Fraction | None = None) -> pa.Table:
    threat = probe.threat if eps is None else replace(probe.threat, eps=str(eps))
    return probe.rows(probe.attacked(attack, threat))


def _either(tables: Sequence[pa.Table]) -> pa.Table:
    """Join tables of the same samples: broken where any of them says so."""
    broken = [any(flags) for flags in zip(*(table["broken"].to_pylist() for table in tables), strict=True)]
    first = tables[0]
    return first.set_column(first.column_names.index("broken"), "broken", pa.array(broken))
