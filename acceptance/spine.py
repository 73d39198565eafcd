"""What the spine must show: one item for each group of claims of the plan, the cheap ones first."""

from __future__ import annotations

from acceptance import spine_errors, spine_losses

ITEMS = (
    spine_losses.losses,
    spine_losses.closed_forms,
    spine_errors.help_time,
    spine_errors.errors,
)
