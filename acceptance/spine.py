"""What the spine must show: one item for each group of claims of the plan, the cheap ones first."""

from __future__ import annotations

from acceptance import (
    spine_clone,
    spine_errors,
    spine_exact,
    spine_independent,
    spine_losses,
    spine_natural,
    spine_report,
    spine_resume,
    spine_training,
    spine_vision,
)

ITEMS = (
    spine_losses.losses,
    spine_losses.closed_forms,
    spine_exact.hygiene,
    spine_exact.bit_identity,
    spine_vision.vit_b32_equal,
    spine_vision.vit_b32_speed,
    spine_errors.help_time,
    spine_errors.errors,
    spine_resume.kill_resume,
    spine_independent.independent_check,
    spine_clone.fresh_clone,
    spine_training.training,
    spine_natural.table,
    spine_report.report,
)
