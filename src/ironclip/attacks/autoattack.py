"""Lists of attacks by name: which attacks with which settings, in which order. A list is run as one attack.

Source: Croce and Hein, ICML 2020, arXiv:2003.01690 (AutoAttack: `standard`, `plus`, `rand`); evaluation plan 2.8.
Deviations: none in the lists; the attacks themselves are ours, each with its own list of deviations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ironclip.attacks.base import ATTACKS
from ironclip.attacks.sequence import Member
from ironclip.errors import RegistryError, did_you_mean


@dataclass(frozen=True)
class AttackList:
    """Attacks that are run one after the other on what still stands.

    Attributes:
        name: On the command line.
        title: In tables: "AutoAttack standard".
        members: The attacks, in their order.
    """

    name: str
    title: str
    members: tuple[Member, ...]


@dataclass(frozen=True)
class _Entry:
    """A line of a list: the label, the registered name and the settings that are not defaults."""

    label: str
    attack: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Plan:
    """A list whose attacks are not built yet."""

    title: str
    about: str
    entries: tuple[_Entry, ...]


def _apgd(loss: str, **settings: int) -> _Entry:
    return _Entry(f"APGD-{loss.upper()}", "apgd", {"steps": 100, "loss": loss, **settings})


_APGD_T = _Entry("APGD-T", "apgd_t", {"steps": 100, "targets": 9})
_FAB_T = _Entry("FAB-T", "fab_t", {"steps": 100, "targets": 9})
_SQUARE = _Entry("Square", "square", {"queries": 5000})
_PAIR = (_apgd("ce", restarts=5), _APGD_T)

_PLANS = {
    "standard": _Plan(
        "AutoAttack standard",
        "AutoAttack's standard list: APGD-CE, APGD-T, FAB-T, Square.",
        (_apgd("ce"), _APGD_T, _FAB_T, _SQUARE),
    ),
    "plus": _Plan(
        "AutoAttack plus",
        "AutoAttack's longer list: APGD-CE, APGD-DLR and FAB with five restarts, Square, APGD-T, FAB-T.",
        (
            _apgd("ce", restarts=5),
            _apgd("dlr", restarts=5),
            _Entry("FAB", "fab", {"steps": 100, "restarts": 5}),
            _SQUARE,
            _APGD_T,
            _FAB_T,
        ),
    ),
    "rand": _Plan(
        "AutoAttack rand",
        "AutoAttack's list for randomised models: APGD-CE and APGD-DLR over means of 20 draws.",
        (_apgd("ce", eot=20), _apgd("dlr", eot=20)),
    ),
    "pair": _Plan("APGD pair", "The two of RobustVLM's tables: APGD-CE with five restarts, APGD-T.", _PAIR),
    "trust": _Plan(
        "Trust list",
        "For published numbers: the pair, then a shorter FAB-T and a shorter Square.",
        (
            *_PAIR,
            _Entry("FAB-T", "fab_t", {"steps": 50, "targets": 3}),
            _Entry("Square", "square", {"queries": 1000}),
        ),
    ),
    "quick": _Plan(
        "Quick list",
        "For a first look: FGSM, PGD-20, corners of the ball at random.",
        (
            _Entry("FGSM", "fgsm"),
            _Entry("PGD-20", "pgd", {"steps": 20}),
            _Entry("Noise", "corners", {"queries": 2}),
        ),
    ),
}


def attack_lists() -> dict[str, str]:
    """Return the names of all lists, each with a line about it."""
    return {name: plan.about for name, plan in _PLANS.items()}


def attack_list(name: str) -> AttackList:
    """Build the attacks of a list.

    Raises:
        RegistryError: There is no such list; near names are shown.
    """
    if name not in _PLANS:
        raise RegistryError(
            f'unknown list of attacks "{name}".{did_you_mean(name, _PLANS)}', f"There are: {', '.join(_PLANS)}."
        )
    plan = _PLANS[name]
    members = (
        Member(entry.label, ATTACKS.create(entry.attack, entry.settings, where=f"{name}: {entry.label}"))
        for entry in plan.entries
    )
    return AttackList(name, plan.title, tuple(members))
