"""Registered attacks with budgets for tests; what an attack is, it is at every budget."""

from __future__ import annotations

import dataclasses

from ironclip.attacks.base import ATTACKS, Attack

LARGEST = {"steps": 20, "targets": 2, "queries": 60}


def quick(name: str) -> Attack:
    """Create a registered attack by its defaults, its budgets cut down to `LARGEST`."""
    attack = ATTACKS.create(name)
    known = {field.name for field in dataclasses.fields(attack)}
    budgets = {key: min(getattr(attack, key), most) for key, most in LARGEST.items() if key in known}
    return dataclasses.replace(attack, **budgets)
