"""The verdict on a row: which samples are probed, which checks a profile makes, and what is stored.

`light` is what an evaluation can afford on every row: the checks of stored rows, and those of the model that cost some
forwards and gradients. `full` adds searches. Source: evaluation plan 3. Deviation: `light` runs no Square, whose 1,000
queries would cost more than the attack it judges; its best verdict is `trusted(light)` and says no more than that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from ironclip.attacks.driver import DriverSettings, Outcome
from ironclip.attacks.threat_model import ThreatModel
from ironclip.attacks.transfer import judge
from ironclip.data.classes import class_groups
from ironclip.data.images import stack_images
from ironclip.errors import DataError
from ironclip.evaluation import diagnostics
from ironclip.evaluation.describing import acting_pixels
from ironclip.evaluation.diagnostics import Check, Diagnosis, Profile, not_run, verdict
from ironclip.evaluation.metrics import clean_correct
from ironclip.evaluation.probes import (
    Probe,
    batch_invariance,
    computes_at_test_time,
    finite_differences,
    no_gradient_path,
    randomised,
    zero_gradient_fraction,
)
from ironclip.evaluation.records import AttackInfo, UnitRecord
from ironclip.evaluation.searches import Effort, searches
from ironclip.models.zero_shot import Classifier
from ironclip.randomness import rank_of
from ironclip.suites.suite import SuiteDataset

PROBED: Mapping[Profile, int] = {"light": 64, "full": 256}
"""Samples that each profile looks at."""

_MARGIN_LOSSES = ("margin", "dlr", "margin_t", "dlr_t")


def probed_ids(rows: pa.Table, count: int) -> list[str]:
    """Choose samples that are right before the attack, as many of each class as can be, by hash of their key.

    Where none is right, wrong ones are taken: gradients and repeats can still be looked at.

    Raises:
        DataError: There are no rows.
    """
    if not rows.num_rows:
        raise DataError("there are no rows to diagnose.", "Evaluate at least one sample.")
    labels, predicted = (rows[name].to_numpy(zero_copy_only=False) for name in ("y", "pred_clean"))
    right = clean_correct(labels, predicted)
    ids = rows["sample_id"].to_pylist()
    chosen = [place for place in range(len(ids)) if right[place] or not right.any()]
    chosen.sort(key=lambda place: rank_of("diagnostics", ids[place]))
    seen: dict[int, int] = {}
    turns = []
    for place in chosen:
        turns.append((seen.setdefault(labels[place], 0), place))
        seen[labels[place]] += 1
    # Sorting is stable: within a turn each class comes once, in order of the hash.
    turns.sort(key=lambda turn: turn[0])
    return [ids[place] for _, place in turns[:count]]


def open_probe(
    info: SuiteDataset,
    ids: Sequence[str],
    classifier: Classifier,
    threat: ThreatModel,
    *,
    seed: int,
    settings: DriverSettings,
) -> Probe:
    """Read samples as the adversary finds them.

    Args:
        info: The data set that holds them.
        ids: Their keys.
        classifier: The model over its classes.
        threat: The game.
        seed: Of random starts and directions.
        settings: Tile of forwards.
    """
    place = {key: position for position, key in enumerate(info.dataset.keys)}
    samples = [info.dataset[place[key]] for key in ids]
    groups = class_groups(info.class_names)
    return Probe(
        classifier=classifier,
        pixels=stack_images([acting_pixels(one.pixels, classifier, threat) for one in samples], info.name),
        labels=torch.tensor([one.label for one in samples]),
        keys=tuple(ids),
        threat=threat,
        groups=None if groups == list(range(len(groups))) else torch.tensor(groups, device=classifier.device),
        seed=seed,
        settings=settings,
    )


def diagnose(
    probe: Probe,
    rows: pa.Table,
    record: UnitRecord,
    *,
    profile: Profile,
    surrogates: Sequence[Classifier] = (),
    replayed: Check | None = None,
    effort: Effort | None = None,
    is_natural: bool = True,
) -> Diagnosis:
    """Make all checks of a profile on a row.

    Args:
        probe: Samples of the row.
        rows: All rows of the unit.
        record: The unit.
        profile: Which checks.
        surrogates: Of the full profile; without any `transfer_stronger` was not run.
        replayed: What `replay` found of stored images, full profile.
        effort: Of the searches of the full profile.
        is_natural: See `diagnostics.huge_eps_not_zero`.

    Raises:
        DataError: There are no rows.
    """
    margin_was_run = any(_follows_a_margin(one) for one in record.attack.members or (record.attack,))
    checks = [*_of_rows(rows, record), clean_replay(probe, rows)]
    checks += [randomised(probe), computes_at_test_time(probe), batch_invariance(probe)]
    path = no_gradient_path(probe)
    has_gradient = path.state == "passed"
    checks.append(path)
    if has_gradient:
        checks += [
            zero_gradient_fraction(probe, "margin"),
            zero_gradient_fraction(probe, "ce", is_info=margin_was_run),
            *finite_differences(probe),
        ]
    else:
        names = ("zero_gradient_fraction", "zero_gradient_fraction_ce", "fd_cosine", "fd_relative_error")
        checks += [not_run(name) for name in names]
    if profile == "full":
        attacked = rows.filter(pc.is_in(rows["sample_id"], pa.array(probe.keys)))
        checks.append(replayed or not_run("replay"))
        checks += searches(
            probe,
            attacked,
            surrogates,
            effort or Effort(),
            margin_was_run=margin_was_run,
            has_gradient=has_gradient,
            is_natural=is_natural,
        )
    found = verdict(checks)
    if profile == "light" and found == ("trusted",):
        found = ("trusted(light)",)
    return Diagnosis(profile=profile, samples=len(probe.keys), checks=tuple(checks), verdict=found)


def clean_replay(probe: Probe, rows: pa.Table) -> Check:
    """Count probed samples whose stored answer on the clean image is right and now wrong, or the other way round."""
    stored = {row["sample_id"]: row["pred_clean"] != row["y"] for row in _plain(rows, "sample_id", "y", "pred_clean")}
    now = _judged(probe, probe.pixels).clean.broken.tolist()
    return _none("clean_replay", sum(stored[key] != wrong for key, wrong in zip(probe.keys, now, strict=True)))


def replay(probe: Probe, adversarial: Tensor, rows: pa.Table) -> Check:
    """Count stored adversarial images whose stored verdict is not the one that the model gives now.

    Args:
        probe: The samples whose images are stored, with their clean images.
        adversarial: `[N, 3, H, W]`, the stored ones.
        rows: With the stored verdicts of at least these samples.
    """
    stored = {row["sample_id"]: row["broken"] for row in _plain(rows, "sample_id", "broken")}
    now = _judged(probe, adversarial).broken.tolist()
    return _none("replay", sum(stored[key] != broken for key, broken in zip(probe.keys, now, strict=True)))


def _of_rows(rows: pa.Table, record: UnitRecord) -> list[Check]:
    checks = [
        diagnostics.probability_output(rows),
        diagnostics.invalid_outputs(rows),
        diagnostics.dtype_gap(rows),
    ]
    if record.threat.radius > Fraction(0):
        checks += [diagnostics.attack_did_nothing(rows), diagnostics.min_progress(rows, record.threat.radius)]
    return checks


def _judged(probe: Probe, points: Tensor) -> Outcome:
    return judge(probe.objective("margin"), points, probe.pixels, probe.keys, probe.threat, settings=probe.settings)


def _plain(rows: pa.Table, *columns: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = rows.select(list(columns)).to_pylist()
    return found


def _none(name: str, count: int) -> Check:
    return Check(name=name, value=float(count), threshold=0, state="failed" if count else "passed")


def _follows_a_margin(attack: AttackInfo) -> bool:
    return attack.settings.get("loss") in _MARGIN_LOSSES
