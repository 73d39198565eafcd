"""Attacks one after the other, each on what still stands, as one attack that remembers which of them did what.

Because rows do not know of each other, the verdicts are those of every attack on every sample, joined pointwise; only
the cost is less. Source: evaluation plan 1.4, 2.8, 6.3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ironclip.attacks.base import Attack
from ironclip.attacks.driver import DriverSettings, Outcome, Progress, run_attack
from ironclip.attacks.objectives import Evaluation, Objective
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError

_EVALUATIONS = ("clean", "final")
_OWN = ("adversarial", "best_loss", "norm", "iterations", "restart")
_SUMMED = ("forwards", "backwards", "seconds", "false_claims")
_EITHER = ("near_tie", "invalid")


@dataclass(frozen=True)
class Member:
    """An attack of a sequence.

    Attributes:
        label: What tables call it, unique in its sequence.
        attack: Its settings.
    """

    label: str
    attack: Attack


@dataclass
class SequenceOutcome(Outcome):
    """What the attacks of a sequence did to each of N samples.

    `adversarial`, `final`, `best_loss`, `norm`, `iterations` and `restart` are those of the attack that broke the
    sample, and for a survivor those of the attack that came nearest to it by the margin, the first one on a tie.
    `forwards`, `backwards`, `seconds` and `false_claims` are sums over the attacks that were run on the sample, and
    `near_tie` and `invalid` say whether it happened in any of them.

    Attributes:
        member: `[N]`, index of the attack that `adversarial` is from, -1 where the clean image was wrong already.
        finished: How many attacks of the sequence have been run.
    """

    member: Tensor
    finished: int

    def tensors(self) -> dict[str, Tensor]:
        """Return everything as tensors, for a file."""
        found = {name: getattr(self, name) for name in (*_OWN, *_SUMMED, *_EITHER, "member")}
        for name in _EVALUATIONS:
            parts = vars(getattr(self, name)).items()
            found |= {f"{name}.{part}": column for part, column in parts if column is not None}
        return found | {"finished": torch.tensor(self.finished)}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> SequenceOutcome:
        """Return the outcome that gave these tensors."""

        def evaluation(name: str) -> Evaluation:
            return Evaluation(*(tensors.get(f"{name}.{field.name}") for field in fields(Evaluation)))  # type: ignore[arg-type]  # value and broken are always there

        final = evaluation("final")
        return cls(
            **{name: tensors[name] for name in (*_OWN, *_SUMMED, *_EITHER, "member")},
            clean=evaluation("clean"),
            final=final,
            broken=final.broken,
            finished=int(tensors["finished"]),
        )

    def join(self, rows: Tensor, found: Outcome, member: int) -> None:
        """Take in what another attack did to some of the rows, none of which was broken."""
        for name in _SUMMED:
            getattr(self, name)[rows] += getattr(found, name)
        for name in _EITHER:
            getattr(self, name)[rows] |= getattr(found, name)
        nearer = found.broken | (_nearness(found.final) > _nearness(self.final)[rows])
        taken = rows[nearer]
        for name in _OWN:
            getattr(self, name)[taken] = getattr(found, name)[nearer]
        for name, column in vars(self.final).items():
            if column is not None:
                column[taken] = getattr(found.final, name)[nearer]
        self.member[taken] = member


def run_sequence(
    members: Sequence[Member],
    objective: Callable[[Attack], Objective],
    pixels: Tensor,
    keys: Sequence[str],
    threat: ThreatModel,
    *,
    seed: int,
    settings: DriverSettings | None = None,
    progress: Progress | None = None,
    begun: SequenceOutcome | None = None,
    after: Callable[[SequenceOutcome], None] | None = None,
) -> SequenceOutcome:
    """Run attacks in their order, each on the samples that those before it have not broken.

    Args:
        members: The attacks.
        objective: Gives what an attack maximises, for all rows.
        pixels: Float32 `[N, 3, H, W]` in [0, 1].
        keys: One stable key a sample.
        threat: The game.
        seed: Seed of the run.
        settings: Tile, compaction, precision.
        progress: Called with (rows broken, rows still attacked) after each step of each attack.
        begun: What an earlier call told `after`, to go on from there.
        after: Called after each attack but the last with what is known by then.

    Raises:
        ConfigError: There is no attack.
    """
    if not members:
        raise ConfigError("a sequence of no attacks.", "Give at least one.")
    outcome = begun
    for number, member in enumerate(members):
        if outcome is not None and number < outcome.finished:
            continue
        rows = torch.arange(len(keys)) if outcome is None else torch.where(~outcome.broken)[0]
        if outcome is None or len(rows):
            standing = len(rows)

            def tell(broken: int, left: int, before: int = len(keys) - standing) -> None:
                if progress:
                    progress(before + broken, left)

            every = objective(member.attack)
            found = run_attack(
                member.attack,
                every.take(rows.to(every.device)),
                pixels[rows],
                [keys[row] for row in rows.tolist()],
                threat,
                seed=seed,
                settings=settings,
                progress=tell,
            )
            if outcome is None:
                first = torch.where(found.clean.broken, -1, 0)
                outcome = SequenceOutcome(**vars(found), member=first, finished=0)
            else:
                outcome.join(rows, found, number)
        outcome.finished = number + 1
        if after and outcome.finished < len(members):
            after(outcome)
    assert outcome is not None  # there is a first attack
    return outcome


def _nearness(evaluation: Evaluation) -> Tensor:
    """Return how near points are to a break, `[N]`, by a measure that does not hang on the loss of the attack."""
    return evaluation.value if evaluation.margin is None else evaluation.margin
